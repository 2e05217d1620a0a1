#pragma once
#include "kernels/kernels.hpp"

/// Every kernel, once for the host and once for CUDA; kernels.cpp chooses.
#define ALLOSAUR_KERNELS(apply)                                                                                     \
  apply(AdamWEma) apply(TargetRows) apply(CrossEntropyRows) apply(RowLogSumExp) apply(ColumnLogSumExp)              \
      apply(LayerNorm) apply(LayerNormBackward) apply(Gelu) apply(GeluBackward) apply(SwiGlu) apply(SwiGluBackward) \
          apply(ResidualAdd) apply(ResidualGather) apply(WeightNorm) apply(WeightNormBackward) apply(FinishCrops)

namespace allosaur::kernels {

#define ALLOSAUR_DECLARE(Kernel)           \
  namespace cpu {                          \
  void run(const Kernel& k);               \
  }                                        \
  namespace cuda {                         \
  void run(const Kernel& k, void* stream); \
  }
ALLOSAUR_KERNELS(ALLOSAUR_DECLARE)
#undef ALLOSAUR_DECLARE

}  // namespace allosaur::kernels
