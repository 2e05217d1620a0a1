#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace allosaur::core {

/// What a random number is for. Part of the generator's key, so that no two purposes share a stream. Values are part of
/// the on-disk contract of a run (a restart must draw the same numbers): append, never renumber.
enum class Purpose : std::uint32_t {
  sample_order = 1,
  global_crop = 2,
  local_crop = 3,
  mask = 4,
  mask_order = 5,
  stochastic_depth = 6,
  initialisation = 7,
  kmeans = 8,
  probe = 9,
  demo = 10,
  subset = 11,
  mixture = 12,
};

/// Philox4x32-10 (Salmon et al., SC'11): 128 random bits for a counter under a key.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) noexcept;

/// Counter-based random numbers: a pure function of (seed, purpose, position, stream). There is no state to save; two
/// ranks that ask for the same key get the same numbers.
class Random {
 public:
  /// `position`: global index of what is being randomised (sample, iteration, ...); `stream`: sub-index (crop,
  /// attempt).
  Random(std::uint64_t seed, Purpose purpose, std::uint64_t position, std::uint32_t stream = 0) noexcept;

  std::uint32_t bits() noexcept;                     ///< 32 uniform bits
  std::uint64_t bits64() noexcept;                   ///< 64 uniform bits
  double uniform() noexcept;                         ///< in [0, 1), 53 bits
  double uniform(double low, double high) noexcept;  ///< in [low, high)
  std::int64_t below(std::int64_t n) noexcept;       ///< unbiased in [0, n), n > 0
  double normal() noexcept;                          ///< mean 0, deviation 1 (Box-Muller)
  bool chance(double probability) noexcept { return uniform() < probability; }

  using result_type = std::uint64_t;  // a UniformRandomBitGenerator, for <random> and std::sample
  static constexpr std::uint64_t min() noexcept { return 0; }
  static constexpr std::uint64_t max() noexcept { return ~std::uint64_t{0}; }
  result_type operator()() noexcept { return bits64(); }

 private:
  void refill() noexcept;
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  int used_ = 4;
};

/// The first `count` entries of a uniformly random permutation of [0, n) (Fisher-Yates).
std::vector<std::int64_t> random_subset(Random& random, std::int64_t n, std::int64_t count);

/// A keyed bijection of [0, n) computed index by index in no memory (a Feistel network over the next power of four,
/// cycle walking back into range). Used for the order of samples of one epoch.
class Permutation {
 public:
  Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch);
  std::int64_t operator()(std::int64_t index) const noexcept;  ///< index in [0, n)

 private:
  std::uint64_t round(std::uint64_t half, int number) const noexcept;
  std::int64_t n_;
  int half_bits_;
  std::uint64_t key_;
};

}  // namespace allosaur::core
