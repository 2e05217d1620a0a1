#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/random.hpp"
#include "kernels/emulation/executors.hpp"
#include "kernels/vector_math.hpp"

namespace allosaur::testing {

/// Normal numbers whose first element lies one float past a multiple of 64 bytes, so that no vector load is aligned.
/// The NaN around them shows in what reads it, and must still be there in the end.
class Floats {
 public:
  explicit Floats(std::int64_t n, double scale = 1, double shift = 0) : values_(static_cast<std::size_t>(n) + 32, NAN) {
    static std::uint64_t count = 0;
    core::Random random(17, core::Purpose::initialisation, count++);
    const auto misplaced = reinterpret_cast<std::uintptr_t>(values_.data()) / sizeof(float) % 16;
    offset_ = static_cast<std::size_t>(17 - misplaced);
    size_ = n;
    for (float& value : *this) value = static_cast<float>(shift + scale * random.normal());
  }
  ~Floats() {
    const auto nan = [](float value) { return std::isnan(value); };
    CHECK((std::all_of(values_.data(), data(), nan) && std::all_of(end(), values_.data() + values_.size(), nan)));
  }
  float* data() { return values_.data() + offset_; }
  const float* data() const { return values_.data() + offset_; }
  float* begin() { return data(); }
  float* end() { return data() + size_; }
  const float* begin() const { return data(); }
  const float* end() const { return data() + size_; }
  std::int64_t size() const { return size_; }
  float& operator[](std::int64_t i) { return data()[i]; }
  float operator[](std::int64_t i) const { return data()[i]; }

 private:
  Array<float> values_;
  std::size_t offset_;
  std::int64_t size_;
};

inline constexpr std::array kTypes{kernels::Type::f32, kernels::Type::f16, kernels::Type::bf16};

/// As Floats, stored in a type; 16-bit numbers begin two bytes past a multiple of four.
class Numbers {
 public:
  Numbers(kernels::Type type, const Floats& values)
      : type_(type), size_(values.size()), bits_(static_cast<std::size_t>(size_) + 2, kNan), floats_(values) {
    if (type_ == kernels::Type::f32) return;
    const auto store = type_ == kernels::Type::f16 ? kernels::cpu::to_f16 : kernels::cpu::to_bf16;
    std::ranges::transform(values, bits_.begin() + 1, store);
  }
  Numbers(kernels::Type type, std::int64_t n, double scale = 1, double shift = 0)
      : Numbers(type, Floats(n, scale, shift)) {}
  ~Numbers() { CHECK((bits_.front() == kNan && bits_.back() == kNan)); }
  void* data() { return type_ == kernels::Type::f32 ? static_cast<void*>(floats_.data()) : bits_.data() + 1; }
  const void* data() const { return const_cast<Numbers*>(this)->data(); }
  std::int64_t size() const { return size_; }
  float operator[](std::int64_t i) const {
    if (type_ == kernels::Type::f32) return floats_[i];
    const std::uint16_t bits = bits_[static_cast<std::size_t>(i) + 1];
    return type_ == kernels::Type::f16 ? kernels::cpu::from_f16(bits) : kernels::cpu::from_bf16(bits);
  }

 private:
  static constexpr std::uint16_t kNan = 0xffff;  // of both types

  kernels::Type type_;
  std::int64_t size_;
  Array<std::uint16_t> bits_;
  Floats floats_;
};

/// Half a unit in the last place of a type, relative to the number.
inline double rounding(kernels::Type type) {
  return type == kernels::Type::f32 ? 0x1p-24 : type == kernels::Type::f16 ? 0x1p-11 : 0x1p-8;
}

/// Largest difference of two arrays, relative to the second's largest element (at least `floor`).
template <class Ours, class Reference>
double relative_error(const Ours& ours, const Reference& reference, double floor = 1e-30) {
  double worst = 0, largest = floor;
  for (std::int64_t i = 0; i < ours.size(); ++i) {
    const double expected = reference[static_cast<std::size_t>(i)];
    const double difference = std::abs(static_cast<double>(ours[i]) - expected);
    if (std::isnan(difference)) return difference;
    worst = std::max(worst, difference);
    largest = std::max(largest, std::abs(expected));
  }
  return worst / largest;
}

}  // namespace allosaur::testing
