#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/random.hpp"
#include "data/dataset.hpp"
#include "io/image.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::testing {

/// Small PNG files in memory: noise around a colour for each class; one of them may be broken.
class MemoryDataset final : public data::Dataset {
 public:
  /// Image i has class i % classes. `seed` draws the noise; `broken` < 0: none.
  MemoryDataset(std::int64_t images, std::int64_t classes, std::uint64_t seed, std::int64_t broken = -1) {
    for (std::int64_t c = 0; c < classes; ++c) class_names_.push_back("class " + std::to_string(c));
    for (std::int64_t i = 0; i < images; ++i) {
      core::Random random(seed, core::Purpose::demo, static_cast<std::uint64_t>(i));
      core::Random colour(7, core::Purpose::demo, static_cast<std::uint64_t>(i % classes), 1);
      const double mean[3] = {colour.uniform(50, 200), colour.uniform(50, 200), colour.uniform(50, 200)};
      io::Image image{.width = 20, .height = 18, .channels = 3, .pixels = {}};
      for (std::size_t p = 0; p < 20 * 18 * 3; ++p) {
        image.pixels.push_back(static_cast<std::uint8_t>(mean[p % 3] + random.uniform(-40, 40)));
      }
      data::Sample sample{io::encode_png(image), i % classes, "image " + std::to_string(i)};
      if (i == broken) sample.bytes.resize(sample.bytes.size() / 2);
      samples_.push_back(std::move(sample));
    }
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(samples_.size()); }
  data::Sample get(std::int64_t index) const override { return at(index); }
  std::int64_t label(std::int64_t index) const override { return at(index).label; }
  std::string key(std::int64_t index) const override { return at(index).key; }
  const std::vector<std::string>& class_names() const override { return class_names_; }

 private:
  const data::Sample& at(std::int64_t index) const { return samples_.at(static_cast<std::size_t>(index)); }
  std::vector<data::Sample> samples_;
  std::vector<std::string> class_names_;
};

/// A network of a few thousand weights whose features depend on the image from the start.
inline model::VitConfig tiny_network() {
  return {.image_size = 16, .patch_size = 4, .embed_dim = 32, .depth = 3, .num_heads = 2, .layer_scale = 1.0};
}

}  // namespace allosaur::testing
