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

/// Writes the view of one image: [channels, crop, crop].
void render_view(const io::Image& image, int resize, int crop, std::uint8_t* out) {
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
  thread_local Crop whole;
  whole.resize(image.channels, scaled(width), scaled(height));
  resizer.planar(image, middle, whole.width, whole.height, false, whole.values.data());
  // The corner is rounded half to even, as torchvision's.
  const auto corner = [&](int side) { return static_cast<std::ptrdiff_t>(std::nearbyint((side - crop) / 2.0)); };
  const std::ptrdiff_t left = corner(whole.width), top = corner(whole.height);
  for (int c = 0; c < whole.channels; ++c)
    for (std::ptrdiff_t y = 0; y < crop; ++y, out += crop)
      std::copy_n(whole.plane(c) + (top + y) * whole.width + left, crop, out);
}

}  // namespace

at::Tensor evaluation_view(const Sample& sample, const PixelConfig& pixels, int resize, int crop) {
  const at::Tensor view = at::empty({1, pixels.channels, crop, crop}, at::kByte);
  render_view(io::decode_image(sample.bytes, decode_options(pixels)), resize, crop, view.data_ptr<std::uint8_t>());
  return normalise(view, pixels, 1)[0];
}

Views evaluation_views(const Dataset& dataset, std::span<const std::int64_t> indices, const PixelConfig& pixels,
                       int resize, int crop, int threads) {
  const auto count = static_cast<std::int64_t>(indices.size());
  Views views;
  views.pixels = at::zeros({count, pixels.channels, crop, crop}, at::kByte);
  views.area.resize(indices.size());
  std::vector<std::string> reasons(indices.size());
  core::parallel_for(threads, count, [&](std::int64_t i) {
    try {
      const Sample sample = dataset.get(indices[static_cast<std::size_t>(i)]);
      const io::Image image = io::decode_image(sample.bytes, decode_options(pixels));
      render_view(image, resize, crop, views.pixels.data_ptr<std::uint8_t>() + i * views.pixels.stride(0));
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

at::Tensor normalise(const at::Tensor& pixels, const PixelConfig& config, int threads) {
  const Normalization normalization({.pixels = config});
  at::Tensor images = at::empty(pixels.sizes(), at::kFloat);
  core::parallel_for(threads, pixels.size(0), [&](std::int64_t i) {
    normalization.write(pixels.const_data_ptr<std::uint8_t>() + i * pixels.stride(0),
                        static_cast<std::size_t>(pixels.size(2) * pixels.size(3)),
                        images.mutable_data_ptr<float>() + i * images.stride(0));
  });
  return images;
}

}  // namespace allosaur::data
