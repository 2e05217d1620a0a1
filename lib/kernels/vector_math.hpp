#pragma once
// Functions that the compiler vectorises when they stand in a loop: no branches, no calls, no errno. Host only.
#include <bit>
#include <cstdint>

/// Before a loop function: compiled for AVX-512, for AVX2 and for any x86-64, and chosen when the program is loaded.
/// Sanitizers cannot yet run when that choice is made.
#if defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define ALLOSAUR_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define ALLOSAUR_VECTORISED
#endif
/// A helper of loops; inlined, so that it takes the instruction set of its caller.
#define ALLOSAUR_INLINE __attribute__((always_inline)) inline

namespace allosaur::kernels::cpu {

/// e^x with a relative error below 2e-7; 0 below -87.3 (the smallest normal number), infinity above 88.7.
ALLOSAUR_INLINE float exp(float x) {
  constexpr float kLog2E = 1.44269504F, kLn2High = 0.693359375F, kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, kept in the lowest bits
  float y = x < -87.4F ? -87.4F : x;
  y = y > 88.8F ? 88.8F : y;
  const float shifted = y * kLog2E + kRound, n = shifted - kRound;
  const float r = (y - n * kLn2High) - n * kLn2Low;
  float p = 1.3836839934810996e-3F;  // minimax on [-ln 2 / 2, ln 2 / 2]
  p = p * r + 8.374815806746483e-3F;
  p = p * r + 4.166822507977486e-2F;
  p = p * r + 0.16666419804096222F;
  p = p * r + 0.49999991059303284F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  // 2^n in two factors: n = 128 has no single one.
  const std::int32_t exponent = std::bit_cast<std::int32_t>(shifted) - std::bit_cast<std::int32_t>(kRound);
  const std::int32_t half = exponent >> 1;
  const float power = p * std::bit_cast<float>((half + 127) << 23);
  const float result = power * std::bit_cast<float>((exponent - half + 127) << 23);
  return x < -87.336F ? 0.0F : result;
}

/// The standard normal distribution at x: Phi and its derivative phi.
struct Normal {
  float cdf, pdf;
};
ALLOSAUR_INLINE Normal normal(float x) {
  const float z = x < 0 ? -x : x;
  const float gauss = exp(-0.5F * z * z);
  const float t = 1.0F / (1.0F + 0.3F * z);
  float q = 3.837876e-2F;  // minimax of Phi(-z) e^(z^2 / 2) in t for z < 14: relative error 4e-7, in the tail too
  q = q * t - 0.1691684573888779F;
  q = q * t + 0.2286645919084549F;
  q = q * t - 0.07651130855083466F;
  q = q * t + 0.1425386220216751F;
  q = q * t + 0.09468231350183487F;
  q = q * t + 0.1219206228852272F;
  q = q * t + 0.11948765069246292F;
  q = q * t + 7.17070452083135e-6F;
  const float tail = gauss * q;
  return {x < 0 ? tail : 1.0F - tail, gauss * 0.3989422804F};
}

ALLOSAUR_INLINE float sigmoid(float x) {
  return 1.0F / (1.0F + exp(-x));
}

ALLOSAUR_INLINE std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;  // to nearest, ties to even
  const bool nan = (bits & 0x7fffffffU) > 0x7f800000U;
  return static_cast<std::uint16_t>(nan ? 0x7fc0U : rounded);
}

ALLOSAUR_INLINE float from_bf16(std::uint16_t x) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16);
}

ALLOSAUR_INLINE std::uint16_t to_f16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000U, size = bits & 0x7fffffffU;
  const std::uint32_t normal = (size - (112U << 23) + 0xfffU + ((size >> 13) & 1U)) >> 13;
  // Below 2^-14 adding 0.5 moves the subnormal's bits into place and rounds them.
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5F) - 0x3f000000U;
  std::uint32_t value = size < 0x38800000U ? subnormal : normal;
  value = size >= 0x47800000U ? 0x7c00U : value;
  value = size > 0x7f800000U ? 0x7e00U : value;
  return static_cast<std::uint16_t>(sign | value);
}

ALLOSAUR_INLINE float from_f16(std::uint16_t x) {
  const std::uint32_t sign = (static_cast<std::uint32_t>(x) & 0x8000U) << 16, size = x & 0x7fffU;
  const float value = std::bit_cast<float>(size << 13) * 0x1p112F;  // moves the exponent's bias; exact
  const std::uint32_t special = size >= 0x7c00U ? 0x7f800000U : 0U;
  return std::bit_cast<float>(sign | special | std::bit_cast<std::uint32_t>(value));
}

}  // namespace allosaur::kernels::cpu
