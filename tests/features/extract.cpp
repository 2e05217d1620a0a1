#include "features/extract.hpp"

#include <atomic>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "core/error.hpp"
#include "data/loader.hpp"
#include "features/memory_dataset.hpp"
#include "model/weights.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using testing::world;

const features::ExtractConfig kConfig{
    .resize = 16, .crop = 16, .batch = 4, .threads = 2, .last_blocks = 2, .average_patches = true};
constexpr std::int64_t kBroken = 5;

TEST_CASE("extracted features are those of every image alone, on any number of ranks") {
  const testing::MemoryDataset dataset(13, 3, /*seed=*/1, kBroken);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  std::vector<std::string> rejected;
  std::int64_t done = 0;
  features::Hooks hooks;
  hooks.reject = [&](const std::string& key, const std::string& reason) {
    rejected.push_back(key);
    CHECK_FALSE(reason.empty());
  };
  hooks.progress = [&](std::int64_t rows) { done = rows; };
  const comm::Range share = world().share(13);
  const auto features = features::extract(*backbone, dataset, share, kConfig, hooks);

  const auto rows = static_cast<std::int64_t>(features.labels.size());
  CHECK(rows == share.size());
  CHECK(done == rows);
  CHECK(world().sum(static_cast<std::int64_t>(rejected.size())) == 1);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t image = share.first + row;
    CHECK(features.labels[static_cast<std::size_t>(row)] == image % 3);
    CHECK(features.area[static_cast<std::size_t>(row)] == (image == kBroken ? 0 : 20 * 18));
    if (image == kBroken) {
      CHECK(rejected == std::vector{dataset.key(kBroken)});
      CHECK(features.cls[row].eq(0).all().item<bool>());
      CHECK(features.patch_mean[row].eq(0).all().item<bool>());
      continue;
    }
    const at::Tensor view = data::evaluation_view(dataset.get(image), {}, 16, 16).unsqueeze(0);
    const at::NoGradGuard no_grad;
    const auto blocks = backbone->intermediate_layers(view, backbone->last_blocks(2));
    CHECK(at::allclose(features.cls[row][0], blocks[0].cls[0], 1e-4, 1e-5));
    CHECK(at::allclose(features.cls[row][1], blocks[1].cls[0], 1e-4, 1e-5));
    CHECK(at::allclose(features.patch_mean[row], blocks[1].patches[0].mean(0), 1e-4, 1e-5));
  }
}

TEST_CASE("extraction leaves early when asked to") {
  const testing::MemoryDataset dataset(13, 3, 1);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  std::int64_t done = 0;
  features::Hooks hooks;
  hooks.progress = [&](std::int64_t rows) { done = rows; };
  hooks.stop = [&] { return done >= 8; };
  CHECK_FALSE(features::extract(*backbone, dataset, {0, 13}, kConfig, hooks).complete);
  CHECK(done == 8);
}

TEST_CASE("images are decoded once where there is room for them, and again where there is not") {
  class Counting final : public data::Dataset {
   public:
    std::int64_t size() const override { return images_.size(); }
    data::Sample get(std::int64_t index) const override { return ++asked, images_.get(index); }
    std::int64_t label(std::int64_t index) const override { return images_.label(index); }
    std::string key(std::int64_t index) const override { return images_.key(index); }
    const std::vector<std::string>& class_names() const override { return images_.class_names(); }
    mutable std::atomic<std::int64_t> asked = 0;

   private:
    testing::MemoryDataset images_{13, 3, 1, kBroken};
  };
  const Counting dataset, other;
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  const auto expected = features::extract(*backbone, dataset, {0, 13}, kConfig);
  constexpr std::int64_t kImageBytes = 3 * 16 * 16;
  // Batches of 4, 4, 4 and 1.
  for (const auto& [bytes, again] :
       {std::pair{std::int64_t{1} << 20, 0}, {9 * kImageBytes, 4}, {std::int64_t{0}, 13}}) {
    features::KeptViews views(bytes);
    features::Hooks hooks;
    hooks.views = &views;
    std::int64_t rejected = 0;
    hooks.reject = [&](auto...) { ++rejected; };
    for (const int wanted : {13, again, again}) {
      dataset.asked = rejected = 0;
      const auto features = features::extract(*backbone, dataset, {0, 13}, kConfig, hooks);
      CHECK(dataset.asked == wanted);
      CHECK(rejected == 1);
      CHECK(features.cls.equal(expected.cls));
      CHECK(features.patch_mean.equal(expected.patch_mean));
      CHECK(features.area == expected.area);
    }
    features::extract(*backbone, other, {0, 13}, kConfig, hooks);
    CHECK(other.asked == 13);
    other.asked = 0;
    CHECK(views.room() >= 0);
  }
}

TEST_CASE("a rank without images has features of no rows") {
  const testing::MemoryDataset dataset(1, 1, 1);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  const auto features = features::extract(*backbone, dataset, world().share(1), kConfig);
  CHECK(features.cls.size(1) == 2);
  CHECK(features.cls.size(2) == 32);
  CHECK(world().sum(features.cls.size(0)) == 1);
}

TEST_CASE("pixel features are the flattened view") {
  const testing::MemoryDataset dataset(5, 2, 1, /*broken=*/0);
  const comm::Range share = world().share(5);
  const auto features = features::extract_pixels(dataset, share, kConfig);
  CHECK_FALSE(features.patch_mean.defined());
  for (std::int64_t row = 0; row < features.cls.size(0); ++row) {
    const std::int64_t image = share.first + row;
    const at::Tensor expected =
        image == 0 ? at::zeros({1, 768}) : data::evaluation_view(dataset.get(image), {}, 16, 16).view({1, 768});
    CHECK(features.cls[row].equal(expected));
  }
}

TEST_CASE("features are of images of the network's channels") {
  const testing::MemoryDataset dataset(4, 2, 1);
  features::ExtractConfig config = kConfig;
  config.pixels = {.channels = 1, .mean = {0.5}, .deviation = {0.25}};
  model::VitConfig grey = testing::tiny_network();
  grey.in_channels = 1;
  const auto backbone = model::new_backbone(grey, 0);
  const comm::Range share = world().share(4);
  const auto features = features::extract(*backbone, dataset, share, config);
  const auto pixels = features::extract_pixels(dataset, share, config);
  for (std::int64_t row = 0; row < features.cls.size(0); ++row) {
    const at::Tensor view = data::evaluation_view(dataset.get(share.first + row), config.pixels, 16, 16);
    CHECK(pixels.cls[row].equal(view.view({1, 256})));
    CHECK(at::allclose(features.cls[row][1], backbone->forward(view.unsqueeze(0)).cls[0], 1e-4, 1e-5));
  }
  CHECK_THROWS_WITH_AS(features::extract(*backbone, dataset, {0, 4}, kConfig),
                       doctest::Contains("Images have 3 channels, but the network reads 1"), core::UsageError);
}

}  // namespace
}  // namespace allosaur
