#pragma once
#include "kernels/vector_math.hpp"

struct __half {
  __half() = default;
  __half(float x) : bits(allosaur::kernels::cpu::to_f16(x)) {}
  std::uint16_t bits;
};

inline float __half2float(__half x) {
  return allosaur::kernels::cpu::from_f16(x.bits);
}
inline __half __float2half_rn(float x) {
  return {x};
}
