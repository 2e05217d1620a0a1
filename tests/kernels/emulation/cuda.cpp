// The very source of the CUDA kernels, in a namespace of its own: a build may have the real ones too.
#define cuda emulated
#include "kernels/cuda.cu"
