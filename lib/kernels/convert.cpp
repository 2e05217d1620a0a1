#include "kernels/convert.hpp"

#include <algorithm>

#include "kernels/vector_math.hpp"

namespace allosaur::kernels::cpu {

namespace {

ALLOSAUR_VECTORISED void load_bf16(std::int64_t n, const std::uint16_t* __restrict from, float* __restrict to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from_bf16(from[i]);
}

ALLOSAUR_VECTORISED void load_f16(std::int64_t n, const std::uint16_t* __restrict from, float* __restrict to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = from_f16(from[i]);
}

ALLOSAUR_VECTORISED void store_bf16(std::int64_t n, const float* __restrict from, std::uint16_t* __restrict to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = to_bf16(from[i]);
}

ALLOSAUR_VECTORISED void store_f16(std::int64_t n, const float* __restrict from, std::uint16_t* __restrict to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = to_f16(from[i]);
}

}  // namespace

const float* load(std::int64_t begin, std::int64_t n, const void* from, Type type, float* scratch) {
  if (type == Type::f32) return static_cast<const float*>(from) + begin;
  (type == Type::f16 ? load_f16 : load_bf16)(n, static_cast<const std::uint16_t*>(from) + begin, scratch);
  return scratch;
}

void store(std::int64_t begin, std::int64_t n, const float* from, Type type, void* to) {
  if (type == Type::f32)
    std::copy_n(from, n, static_cast<float*>(to) + begin);
  else
    (type == Type::f16 ? store_f16 : store_bf16)(n, from, static_cast<std::uint16_t*>(to) + begin);
}

}  // namespace allosaur::kernels::cpu
