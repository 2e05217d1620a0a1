#pragma once
#include "kernels/vector_math.hpp"

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits(allosaur::kernels::cpu::to_bf16(x)) {}
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  return allosaur::kernels::cpu::from_bf16(x.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {x};
}
