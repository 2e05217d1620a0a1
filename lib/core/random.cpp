#include "core/random.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace allosaur::core {

namespace {

std::pair<std::uint32_t, std::uint32_t> high_low(std::uint32_t a, std::uint32_t b) noexcept {
  const std::uint64_t product = std::uint64_t{a} * b;
  return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}

constexpr int kFeistelRounds = 8;  // small sets have halves of one or two bits, which mix slowly

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const auto [high0, low0] = high_low(0xD2511F53u, counter[0]);
    const auto [high1, low1] = high_low(0xCD9E8D57u, counter[2]);
    counter = {high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// The purpose is hashed into the key with the seed, because the counter has room for block, stream and position only.
Random::Random(std::uint64_t seed, Purpose purpose, std::uint64_t position, std::uint32_t stream) noexcept
    : counter_{0, stream, static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32)} {
  const auto hashed = philox({static_cast<std::uint32_t>(purpose), 0, 0, 0},
                             {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  key_ = {hashed[0], hashed[1]};
}

void Random::refill() noexcept {
  block_ = philox(counter_, key_);
  ++counter_[0];
  used_ = 0;
}

std::uint32_t Random::bits() noexcept {
  if (used_ == 4) refill();
  return block_[static_cast<std::size_t>(used_++)];
}

std::uint64_t Random::bits64() noexcept {
  const std::uint64_t high = bits();
  return high << 32 | bits();
}

double Random::uniform() noexcept {
  return static_cast<double>(bits64() >> 11) * 0x1.0p-53;
}

double Random::uniform(double low, double high) noexcept {
  return low + (high - low) * uniform();
}

// Lemire, "Fast random integer generation in an interval" (2019): multiply, and reject the few values that would bias.
std::int64_t Random::below(std::int64_t n) noexcept {
  const auto range = static_cast<std::uint64_t>(n);
  const std::uint64_t threshold = (0 - range) % range;
  while (true) {
    const auto product = static_cast<unsigned __int128>(bits64()) * range;
    if (static_cast<std::uint64_t>(product) >= threshold) return static_cast<std::int64_t>(product >> 64);
  }
}

double Random::normal() noexcept {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

std::vector<std::int64_t> random_subset(Random& random, std::int64_t n, std::int64_t count) {
  if (count < 0 || count > n) throw std::logic_error("random_subset: count must lie in [0, n]");
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  for (std::int64_t i = 0; i < count; ++i) {
    std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(i + random.below(n - i))]);
  }
  order.resize(static_cast<std::size_t>(count));
  return order;
}

Permutation::Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch)
    : n_(n), key_(Random(seed, Purpose::sample_order, epoch).bits64()) {
  if (n <= 0) throw std::logic_error("Permutation: n must be positive");
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(static_cast<std::uint64_t>(n - 1))) + 1) / 2);
}

// A 64-bit finaliser (Stafford's "mix 13") of half, round and key.
std::uint64_t Permutation::round(std::uint64_t half, int number) const noexcept {
  std::uint64_t x = key_ + half + (static_cast<std::uint64_t>(number + 1) * 0x9E3779B97F4A7C15u);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

std::int64_t Permutation::operator()(std::int64_t index) const noexcept {
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (int number = 0; number < kFeistelRounds; ++number) {
      left = std::exchange(right, (left ^ round(right, number)) & mask);
    }
    value = left << half_bits_ | right;
  } while (value >= static_cast<std::uint64_t>(n_));
  return static_cast<std::int64_t>(value);
}

}  // namespace allosaur::core
