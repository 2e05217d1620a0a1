#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/random.hpp"
#include "data/dataset.hpp"
#include "io/image.hpp"

namespace allosaur::testing {

/// A picture of a few soft blobs of random place, size and colour on a drifting background.
inline io::Image picture(std::uint64_t number, int width, int height) {
  core::Random random(5, core::Purpose::demo, number);
  struct Blob {
    double x, y, radius, colour[3];
  };
  std::vector<Blob> blobs(9);
  for (Blob& blob : blobs) {
    blob = {random.uniform(), random.uniform(), random.uniform(0.05, 0.3), {}};
    for (double& value : blob.colour) value = random.uniform(-150, 150);
  }
  const double slope[2] = {random.uniform(-80, 80), random.uniform(-80, 80)};
  io::Image image{width, height, 3, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const double u = (x + 0.5) / width, v = (y + 0.5) / height;
      for (int channel = 0; channel < 3; ++channel) {
        double value = 128 + slope[0] * (u - 0.5) + slope[1] * (v - 0.5);
        for (const Blob& blob : blobs) {
          const double distance = std::hypot(u - blob.x, v - blob.y) / blob.radius;
          value += blob.colour[channel] * std::exp(-distance * distance);
        }
        image.pixels.push_back(static_cast<std::uint8_t>(std::min(255.0, std::max(0.0, value))));
      }
    }
  }
  return image;
}

/// Encoded images in memory; an empty one is a broken file.
class MemoryDataset final : public data::Dataset {
 public:
  explicit MemoryDataset(std::vector<std::vector<std::byte>> images) : images_(std::move(images)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(images_.size()); }
  data::Sample get(std::int64_t index) const override {
    return {images_.at(static_cast<std::size_t>(index)), -1, key(index)};
  }
  std::int64_t label(std::int64_t) const override { return -1; }
  std::string key(std::int64_t index) const override { return std::to_string(index) + ".jpg"; }
  const std::vector<std::string>& class_names() const override { return no_classes_; }

 private:
  std::vector<std::vector<std::byte>> images_;
  std::vector<std::string> no_classes_;
};

}  // namespace allosaur::testing
