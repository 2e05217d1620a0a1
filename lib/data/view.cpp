#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "core/thread_pool.hpp"
#include "data/augment.hpp"
#include "data/loader.hpp"

namespace allosaur::data {
namespace {

constexpr int kMaxAspect = 16;

void centre_crop(const Crop& whole, int size, Crop& view) {
  // The corner is rounded half to even, as torchvision's.
  const auto corner = [&](int side) { return static_cast<std::ptrdiff_t>(std::nearbyint((side - size) / 2.0)); };
  const std::ptrdiff_t left = corner(whole.width), top = corner(whole.height);
  view.resize(whole.channels, size, size);
  for (int c = 0; c < whole.channels; ++c) {
    for (std::ptrdiff_t y = 0; y < size; ++y)
      std::copy_n(whole.plane(c) + (top + y) * whole.width + left, size, view.plane(c) + y * size);
  }
}

/// Writes the view of one image: f32 [channels, crop, crop].
void render_view(const io::Image& image, const Normalization& normalization, int resize, int crop, float* out) {
  if (crop > resize) {
    throw core::UsageError(fmt::format(
        "A crop of {} pixels does not fit into images resized to {} pixels; give a smaller crop.", crop, resize));
  }
  // The crop sees the middle only; enlarging a sliver of an image whole would exhaust memory.
  const int shorter = std::min(image.width, image.height);
  const int width = std::min(image.width, kMaxAspect * shorter), height = std::min(image.height, kMaxAspect * shorter);
  const io::Box middle{static_cast<double>((image.width - width) / 2), static_cast<double>((image.height - height) / 2),
                       static_cast<double>(width), static_cast<double>(height)};
  const auto scaled = [&](int side) { return static_cast<int>(static_cast<std::int64_t>(resize) * side / shorter); };
  thread_local io::Resizer resizer;
  thread_local Crop whole, view;
  whole.resize(image.channels, scaled(width), scaled(height));
  resizer.planar(image, middle, whole.width, whole.height, false, whole.values.data());
  centre_crop(whole, crop, view);
  normalization.write(view, out);
}

}  // namespace

at::Tensor evaluation_view(const Sample& sample, const PixelConfig& pixels, int resize, int crop) {
  const Normalization normalization({.pixels = pixels});
  at::Tensor view = at::empty({pixels.channels, crop, crop}, at::kFloat);
  render_view(io::decode_image(sample.bytes, decode_options(pixels)), normalization, resize, crop,
              view.data_ptr<float>());
  return view;
}

Views evaluation_views(const Dataset& dataset, std::span<const std::int64_t> indices, const PixelConfig& pixels,
                       int resize, int crop, int threads) {
  const Normalization normalization({.pixels = pixels});
  const auto count = static_cast<std::int64_t>(indices.size());
  Views views;
  views.images = at::zeros({count, pixels.channels, crop, crop}, at::kFloat);
  views.area.resize(indices.size());
  std::vector<std::string> reasons(indices.size());
  core::parallel_for(threads, count, [&](std::int64_t i) {
    try {
      const Sample sample = dataset.get(indices[static_cast<std::size_t>(i)]);
      const io::Image image = io::decode_image(sample.bytes, decode_options(pixels));
      render_view(image, normalization, resize, crop, views.images.data_ptr<float>() + i * views.images.stride(0));
      views.area[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(image.width) * image.height;
    } catch (const core::InputError& error) {
      reasons[static_cast<std::size_t>(i)] = error.what();
    }
  });
  for (std::size_t i = 0; i < indices.size(); ++i) {
    if (!reasons[i].empty()) views.rejected.push_back({dataset.key(indices[i]), reasons[i]});
  }
  return views;
}

}  // namespace allosaur::data
