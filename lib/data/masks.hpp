#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace allosaur::data {

/// iBOT block masks (dinov2/data/masking.py, dinov2/data/collate.py). Quotas hold within a group of images.
struct MaskConfig {
  int patches_per_side = 16;
  double sample_probability = 0.5, ratio_min = 0.1, ratio_max = 0.5;

  /// The most patches of one block: ((0.5 * image // patch) * image) // patch of the published code, where the image
  /// has patches_per_side * patch pixels a side.
  std::int64_t max_block() const noexcept { return std::int64_t{patches_per_side / 2} * patches_per_side; }
};

/// The bool [2B, N] masks of one group of B images, rows crop-major (crop 1 of all images, then crop 2): floor(2B * p)
/// rows are masked, each with its share of the ratio range, in shuffled order. A pure function of (seed, group).
at::Tensor make_masks(const MaskConfig& config, int images, std::uint64_t seed, std::int64_t group);

}  // namespace allosaur::data
