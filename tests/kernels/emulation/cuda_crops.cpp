#define cuda emulated  // as in cuda.cpp
#include "kernels/cuda_crops.cu"
