#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "data/augment.hpp"

namespace allosaur::data {
namespace {

using Table = std::array<std::uint8_t, 256>;

/// Pillow's luma: 299/587/114 in 16-bit fixed point, rounded.
inline int luma(const std::uint8_t* rgb) {
  return (rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16;
}

/// Pillow's Image.blend of one value: from + factor * (to - from), clipped and truncated.
inline std::uint8_t blend(int from, int to, float factor) {
  const float value = static_cast<float>(from) + factor * static_cast<float>(to - from);
  return static_cast<std::uint8_t>(std::clamp(value, 0.0F, 255.0F));
}

void apply(io::Image& image, const Table& table) {
  for (std::uint8_t& value : image.pixels) value = table[value];
}

/// Blends every value with a constant grey.
void blend_with_constant(io::Image& image, int grey, double factor) {
  Table table;
  for (int value = 0; value < 256; ++value) {
    table[static_cast<std::size_t>(value)] = blend(grey, value, static_cast<float>(factor));
  }
  apply(image, table);
}

}  // namespace

void adjust_brightness(io::Image& image, double factor) {
  blend_with_constant(image, 0, factor);
}

void adjust_contrast(io::Image& image, double factor) {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < image.pixels.size(); i += 3) sum += luma(&image.pixels[i]);
  const double mean = static_cast<double>(sum) / static_cast<double>(image.pixels.size() / 3);
  blend_with_constant(image, static_cast<int>(mean + 0.5), factor);
}

void adjust_saturation(io::Image& image, double factor) {
  const auto amount = static_cast<float>(factor);
  for (std::size_t i = 0; i < image.pixels.size(); i += 3) {
    std::uint8_t* rgb = &image.pixels[i];
    const int grey = luma(rgb);
    for (int c = 0; c < 3; ++c) rgb[c] = blend(grey, rgb[c], amount);
  }
}

void adjust_hue(io::Image& image, double shift) {
  // Hue is a byte that wraps; the shift is cut towards zero as torchvision does.
  const auto turn = static_cast<std::uint8_t>(static_cast<int>(shift * 255));
  struct Sector {
    int number;
    float fraction;
  };
  std::array<Sector, 256> sectors;  // of each hue, after the turn
  for (int hue = 0; hue < 256; ++hue) {
    const double position = static_cast<std::uint8_t>(hue + turn) * 6.0 / 255.0;
    const int number = static_cast<int>(position);
    sectors[static_cast<std::size_t>(hue)] = {number % 6, static_cast<float>(position - number)};
  }
  for (std::size_t i = 0; i < image.pixels.size(); i += 3) {
    std::uint8_t* rgb = &image.pixels[i];
    const int r = rgb[0], g = rgb[1], b = rgb[2];
    const int value = std::max({r, g, b});
    const int chroma = value - std::min({r, g, b});
    if (chroma == 0) continue;  // grey stays grey
    const auto range = static_cast<float>(chroma);
    const float to_r = static_cast<float>(value - r) / range;
    const float to_g = static_cast<float>(value - g) / range;
    const float to_b = static_cast<float>(value - b) / range;
    const auto sixth = static_cast<float>(r == value   ? to_b - to_g
                                          : g == value ? 2.0 + to_r - to_b
                                                       : 4.0 + to_g - to_r);
    const double turns = sixth / 6.0 + 1.0;
    const auto hue = static_cast<std::size_t>(static_cast<float>(turns >= 1.0 ? turns - 1.0 : turns) * 255.0);
    const float fraction_s = range / static_cast<float>(value);
    const int saturation = static_cast<int>(fraction_s * 255.0);
    if (saturation == 0) {  // 8-bit HSV has lost the colour
      std::fill_n(rgb, 3, static_cast<std::uint8_t>(value));
      continue;
    }
    const Sector sector = sectors[std::min<std::size_t>(hue, 255)];
    const float s = static_cast<float>(saturation) / 255.0F;  // mixed precision below: Pillow's, for equal rounding
    const auto rounded = [](double x) { return static_cast<std::uint8_t>(x + 0.5); };
    const auto v = static_cast<std::uint8_t>(value);
    const std::uint8_t p = rounded(value * (1.0 - s));
    const std::uint8_t q = rounded(value * (1.0 - static_cast<double>(s * sector.fraction)));
    const std::uint8_t t = rounded(value * (1.0 - s * (1.0 - sector.fraction)));
    const std::array<std::uint8_t, 3> turned[6] = {{v, t, p}, {q, v, p}, {p, v, t}, {p, q, v}, {t, p, v}, {v, p, q}};
    std::copy_n(turned[sector.number].begin(), 3, rgb);
  }
}

void convert_to_grayscale(io::Image& image) {
  for (std::size_t i = 0; i < image.pixels.size(); i += 3) {
    std::fill_n(&image.pixels[i], 3, static_cast<std::uint8_t>(luma(&image.pixels[i])));
  }
}

void solarize(io::Image& image) {
  Table table;
  for (int value = 0; value < 256; ++value) {
    table[static_cast<std::size_t>(value)] = static_cast<std::uint8_t>(value < 128 ? value : 255 - value);
  }
  apply(image, table);
}

void gaussian_blur(io::Image& image, double sigma) {
  constexpr int kRadius = 4;
  std::array<float, 2 * kRadius + 1> weights;
  float sum = 0;
  for (int k = -kRadius; k <= kRadius; ++k) {
    const double x = k / sigma;
    sum += weights[static_cast<std::size_t>(k + kRadius)] = static_cast<float>(std::exp(-0.5 * x * x));
  }
  for (float& weight : weights) weight /= sum;

  const auto reflect = [](int at,
                          int size) {  // without repeating the border; more than once for images of a few pixels
    const int period = std::max(1, 2 * (size - 1));
    at = std::abs(at) % period;
    return static_cast<std::size_t>(at < size ? at : period - at);
  };
  const auto width = static_cast<std::size_t>(image.width), height = static_cast<std::size_t>(image.height);
  const std::size_t stride = 3 * width;
  thread_local std::vector<float> padded, rows;  // scratch: keeps its memory from crop to crop
  padded.resize(stride + 6 * kRadius);
  rows.resize(height * stride);
  for (std::size_t y = 0; y < height; ++y) {
    const std::uint8_t* source = &image.pixels[y * stride];
    std::copy_n(source, stride, &padded[3 * kRadius]);
    for (int k = 1; k <= kRadius; ++k) {
      const std::size_t left = 3 * reflect(-k, image.width), right = 3 * reflect(image.width - 1 + k, image.width);
      for (std::size_t c = 0; c < 3; ++c) {
        padded[3 * static_cast<std::size_t>(kRadius - k) + c] = source[left + c];
        padded[3 * (width + kRadius + static_cast<std::size_t>(k) - 1) + c] = source[right + c];
      }
    }
    float* out = &rows[y * stride];
    std::fill_n(out, stride, 0.0F);
    for (std::size_t k = 0; k < weights.size(); ++k) {
      const float weight = weights[k];
      const float* in = &padded[3 * k];
      for (std::size_t i = 0; i < stride; ++i) out[i] += weight * in[i];
    }
  }
  for (int y = 0; y < image.height; ++y) {
    float* column = padded.data();
    std::fill_n(column, stride, 0.5F);  // rounds to nearest when cut below
    for (int k = -kRadius; k <= kRadius; ++k) {
      const float weight = weights[static_cast<std::size_t>(k + kRadius)];
      const float* in = &rows[reflect(y + k, image.height) * stride];
      for (std::size_t i = 0; i < stride; ++i) column[i] += weight * in[i];
    }
    std::uint8_t* out = &image.pixels[static_cast<std::size_t>(y) * stride];
    for (std::size_t i = 0; i < stride; ++i) out[i] = static_cast<std::uint8_t>(static_cast<int>(column[i]));
  }
}

void flip_horizontally(io::Image& image) {
  const auto width = static_cast<std::size_t>(image.width);
  for (std::size_t y = 0; y < static_cast<std::size_t>(image.height); ++y) {
    std::uint8_t* row = &image.pixels[y * width * 3];
    for (std::size_t left = 0, right = width - 1; left < right; ++left, --right) {
      std::swap_ranges(row + 3 * left, row + 3 * left + 3, row + 3 * right);
    }
  }
}

void normalize(const io::Image& image, float* out) {
  static const auto kTables = [] {
    constexpr std::array<float, 3> kMean = {0.485F, 0.456F, 0.406F}, kDeviation = {0.229F, 0.224F, 0.225F};  // ImageNet
    std::array<std::array<float, 256>, 3> tables;
    for (std::size_t c = 0; c < 3; ++c) {
      for (std::size_t value = 0; value < 256; ++value) {
        tables[c][value] = (static_cast<float>(value) / 255.0F - kMean[c]) / kDeviation[c];
      }
    }
    return tables;
  }();
  const std::size_t pixels = image.pixels.size() / 3;
  for (std::size_t i = 0; i < pixels; ++i) {
    for (std::size_t c = 0; c < 3; ++c) out[c * pixels + i] = kTables[c][image.pixels[3 * i + c]];
  }
}

}  // namespace allosaur::data
