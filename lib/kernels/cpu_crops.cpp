#include "kernels/backends.hpp"
#include "kernels/finish_crop.hpp"
#include "kernels/parallel.hpp"
#include "kernels/vector_math.hpp"

namespace allosaur::kernels::cpu {

namespace {

/// A team of one thread.
struct Alone {
  template <class Body>
  ALLOSAUR_INLINE void for_each(int n, const Body& body) const {
    for (int i = 0; i < n; ++i) body(i);
  }
  template <class Value>
  ALLOSAUR_INLINE std::int64_t sum(int n, const Value& value) const {
    std::int64_t total = 0;
    for (int i = 0; i < n; ++i) total += value(i);
    return total;
  }
};

ALLOSAUR_VECTORISED void finish_f32(const FinishCrops& k, std::int64_t crop) {
  finish_crop(Alone{}, k, crop, [out = static_cast<float*>(k.output)](std::int64_t i, float x) { out[i] = x; });
}

ALLOSAUR_VECTORISED void finish_f16(const FinishCrops& k, std::int64_t crop) {
  finish_crop(Alone{}, k, crop,
              [out = static_cast<std::uint16_t*>(k.output)](std::int64_t i, float x) { out[i] = to_f16(x); });
}

ALLOSAUR_VECTORISED void finish_bf16(const FinishCrops& k, std::int64_t crop) {
  finish_crop(Alone{}, k, crop,
              [out = static_cast<std::uint16_t*>(k.output)](std::int64_t i, float x) { out[i] = to_bf16(x); });
}

}  // namespace

void run(const FinishCrops& k) {
  const auto finish = k.type == Type::f32 ? finish_f32 : k.type == Type::f16 ? finish_f16 : finish_bf16;
  for_pieces(k.crops, 1, [&](std::int64_t crop, std::int64_t) { finish(k, crop); });
}

}  // namespace allosaur::kernels::cpu
