#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <vector>

#include "data/masks.hpp"
#include "testing.hpp"

namespace allosaur {

TEST_CASE("masks follow the quotas of a group") {
  const data::MaskConfig config{.patches_per_side = 16};
  constexpr int kImages = 32;
  for (int group = 0; group < 8; ++group) {
    const at::Tensor masks = data::make_masks(config, kImages, 5, group);
    CHECK((masks.sizes() == at::IntArrayRef{2 * kImages, 256}));
    CHECK((masks.scalar_type() == at::kBool));
    at::Tensor counts = std::get<0>(masks.sum(1).sort());
    // Half of the rows are empty; the i-th of the others asks for its 32nd part of 10 % to 50 % of the patches.
    CHECK(counts.slice(0, 0, kImages).eq(0).all().item<bool>());
    for (int i = 0; i < kImages; ++i) {
      CHECK(counts[kImages + i].item<std::int64_t>() <=
            static_cast<std::int64_t>(256 * (0.1 + 0.4 * (i + 1) / kImages)));
    }
    CHECK(counts[2 * kImages - 1].item<std::int64_t>() >= 100);
    CHECK(counts.sum().item<double>() / (kImages * 256) == doctest::Approx(0.3).epsilon(0.05));
  }
}

TEST_CASE("masks are a pure function of seed and group, and differ between them") {
  const data::MaskConfig config{.patches_per_side = 8};
  const at::Tensor masks = data::make_masks(config, 8, 1, 2);
  CHECK(masks.equal(data::make_masks(config, 8, 1, 2)));
  CHECK_FALSE(masks.equal(data::make_masks(config, 8, 1, 3)));
  CHECK_FALSE(masks.equal(data::make_masks(config, 8, 2, 2)));
}

TEST_CASE("masked rows are spread over all crops") {
  const data::MaskConfig config{.patches_per_side = 8};
  at::Tensor masked = at::zeros({16}, at::kLong);
  constexpr int kGroups = 400;
  for (int group = 0; group < kGroups; ++group) masked += data::make_masks(config, 8, 1, group).any(1);
  CHECK(masked.min().item<std::int64_t>() > kGroups / 2 - 50);
  CHECK(masked.max().item<std::int64_t>() < kGroups / 2 + 50);
}

TEST_CASE("masks come in blocks") {
  const data::MaskConfig config{.patches_per_side = 16};
  const at::Tensor masks = data::make_masks(config, 32, 5, 0).view({64, 16, 16});
  // In blocks of 4 patches and more most masked patches have a masked neighbour to the right or left.
  const at::Tensor pairs = masks.slice(2, 1) & masks.slice(2, 0, 15);
  CHECK(pairs.sum().item<double>() > 0.7 * masks.sum().item<double>());
  for (int row = 0; row < 64; ++row) CHECK_FALSE(masks[row].all().item<bool>());
}

TEST_CASE("blocks have at most the published number of patches") {
  for (const auto& [image, patch, largest] : {std::array{224, 16, 98}, {224, 14, 128}, {518, 14, 666}})
    CHECK(data::MaskConfig{.patches_per_side = image / patch}.max_block() == largest);
}

TEST_CASE("odd mask settings") {
  CHECK_FALSE(data::make_masks({.patches_per_side = 8, .sample_probability = 0}, 4, 0, 0).any().item<bool>());
  CHECK(data::make_masks({.patches_per_side = 8, .sample_probability = 0.5}, 1, 0, 0).any(1).sum().item<int>() == 1);
  CHECK_FALSE(data::make_masks({.patches_per_side = 1}, 4, 0, 0).any().item<bool>());  // no block fits strictly inside
  const at::Tensor all = data::make_masks({.patches_per_side = 8, .sample_probability = 1, .ratio_min = 0.5}, 4, 0, 0);
  CHECK(all.any(1).all().item<bool>());
}

}  // namespace allosaur
