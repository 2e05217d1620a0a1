#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/random.hpp"

namespace allosaur::testing {

/// Normal numbers whose first element lies one float past a multiple of 64 bytes, so that no vector load is aligned.
class Floats {
 public:
  explicit Floats(std::int64_t n, double scale = 1, double shift = 0) : values_(static_cast<std::size_t>(n) + 32) {
    static std::uint64_t count = 0;
    core::Random random(17, core::Purpose::initialisation, count++);
    const auto misplaced = reinterpret_cast<std::uintptr_t>(values_.data()) / sizeof(float) % 16;
    offset_ = static_cast<std::size_t>(17 - misplaced);
    size_ = n;
    for (float& value : *this) value = static_cast<float>(shift + scale * random.normal());
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
  std::vector<float> values_;
  std::size_t offset_;
  std::int64_t size_;
};

/// Largest difference of two arrays, relative to the second's largest element (at least `floor`).
template <class Ours, class Reference>
double relative_error(const Ours& ours, const Reference& reference, double floor = 1e-30) {
  double worst = 0, largest = floor;
  for (std::int64_t i = 0; i < ours.size(); ++i) {
    const double expected = reference[static_cast<std::size_t>(i)];
    const double difference = std::abs(static_cast<double>(ours[i]) - expected);
    if (!(difference <= worst)) worst = difference;  // keeps a NaN
    largest = std::max(largest, std::abs(expected));
  }
  return worst / largest;
}

}  // namespace allosaur::testing
