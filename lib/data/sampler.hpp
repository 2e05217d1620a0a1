#pragma once
#include <cstdint>
#include <vector>

namespace allosaur::data {

/// Which sample stands at a global position: a pure function of (seed, position), computed in no memory and the same
/// whatever came before.
///
/// Without weights every epoch is a permutation of all samples: position p holds Permutation(size, seed, p / size)(p %
/// size). With weights each source has a fixed number of the positions of every block of 10,000, in a random order
/// within the block, and is gone through in permutations of its own: shares are exact, and no sample of a source comes
/// again before all of them have come.
class Sampler {
 public:
  /// `weights`: one a source, or none. Throws core::UsageError where they are not as many as sources, not positive, or
  /// so unequal that a source would get none of a block.
  Sampler(std::vector<std::int64_t> sizes, const std::vector<double>& weights, std::uint64_t seed);

  std::int64_t size() const noexcept { return size_; }  ///< of all sources
  std::int64_t operator()(std::int64_t position) const;
  /// The sample to try instead, in attempt 1, 2, ..., where that of `position` is broken: a random one of its source.
  std::int64_t replacement(std::int64_t position, std::uint32_t attempt) const;

 private:
  struct Source {
    std::int64_t first, size;   // samples
    std::int64_t begin, share;  // positions of a shuffled block
    std::uint64_t seed;
  };
  const Source& source_at(std::int64_t slot) const;

  std::uint64_t seed_;
  std::int64_t size_ = 0, block_ = 0;
  std::vector<Source> sources_;
};

}  // namespace allosaur::data
