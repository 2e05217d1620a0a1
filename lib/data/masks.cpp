#include "data/masks.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "core/random.hpp"

namespace allosaur::data {
namespace {

constexpr int kMinBlockPatches = 4;
constexpr double kMinAspect = 0.3;
constexpr int kTries = 10;

/// One square grid of patches that blocks are laid on.
class MaskGrid {
 public:
  MaskGrid(bool* cells, const MaskConfig& config)
      : cells_(cells), side_(config.patches_per_side), max_block_(config.max_block()) {}

  /// Covers `wanted` patches with random blocks; fewer when no further block fits.
  void cover(std::int64_t wanted, core::Random& random) {
    std::int64_t covered = 0;
    while (covered < wanted) {
      const std::int64_t added = add_block(std::min(wanted - covered, max_block_), random);
      if (added == 0) break;
      covered += added;
    }
  }

 private:
  /// Lays one block of at most `budget` new patches; returns how many it added.
  std::int64_t add_block(std::int64_t budget, core::Random& random) {
    for (int attempt = 0; attempt < kTries; ++attempt) {
      // Below 4 the bounds are in reverse order, as published: the area then lies between the budget and 4.
      const double area = kMinBlockPatches + random.uniform() * (static_cast<double>(budget) - kMinBlockPatches);
      const double aspect = std::exp(random.uniform(std::log(kMinAspect), std::log(1 / kMinAspect)));
      const auto height = static_cast<int>(std::nearbyint(std::sqrt(area * aspect)));  // half to even
      const auto width = static_cast<int>(std::nearbyint(std::sqrt(area / aspect)));
      if (height >= side_ || width >= side_) continue;
      const auto top = static_cast<int>(random.below(side_ - height + 1));
      const auto left = static_cast<int>(random.below(side_ - width + 1));
      std::int64_t added = 0;
      for (int y = top; y < top + height; ++y) added += std::count(row(y) + left, row(y) + left + width, false);
      if (added == 0 || added > budget) continue;
      for (int y = top; y < top + height; ++y) std::fill_n(row(y) + left, width, true);
      return added;
    }
    return 0;
  }

  bool* row(int y) { return cells_ + static_cast<std::ptrdiff_t>(y) * side_; }

  bool* cells_;
  int side_;
  std::int64_t max_block_;
};

}  // namespace

at::Tensor make_masks(const MaskConfig& config, int images, std::uint64_t seed, std::int64_t group) {
  const std::int64_t rows = std::int64_t{2} * images;
  const std::int64_t patches = std::int64_t{config.patches_per_side} * config.patches_per_side;
  const auto masked = static_cast<std::int64_t>(static_cast<double>(rows) * config.sample_probability);

  core::Random order(seed, core::Purpose::mask_order, static_cast<std::uint64_t>(group));
  const std::vector<std::int64_t> place = core::random_subset(order, rows, rows);

  at::Tensor masks = at::zeros({rows, patches}, at::kBool);
  const double step = masked > 0 ? (config.ratio_max - config.ratio_min) / static_cast<double>(masked) : 0;
  for (std::int64_t i = 0; i < masked; ++i) {
    core::Random random(seed, core::Purpose::mask, static_cast<std::uint64_t>(group), static_cast<std::uint32_t>(i));
    const double low = config.ratio_min + step * static_cast<double>(i);
    const auto wanted = static_cast<std::int64_t>(static_cast<double>(patches) * random.uniform(low, low + step));
    MaskGrid(masks.data_ptr<bool>() + place[static_cast<std::size_t>(i)] * patches, config).cover(wanted, random);
  }
  return masks;
}

}  // namespace allosaur::data
