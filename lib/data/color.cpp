#include "data/color.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "kernels/vector_math.hpp"

// Every loop here is written for the compiler to vectorise, over planes. The file is compiled without contraction to
// fused multiply-adds, which would make results depend on the processor and differ from Pillow's.

namespace allosaur::data {
namespace {

/// Pillow's luma: 299/587/114 in 16-bit fixed point, rounded.
ALLOSAUR_INLINE int luma(int r, int g, int b) {
  return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
}

/// Pillow's Image.blend of one value: from + factor * (to - from), clipped and truncated.
ALLOSAUR_INLINE std::uint8_t blend(int from, int to, float factor) {
  float value = static_cast<float>(from) + factor * static_cast<float>(to - from);
  value = value < 0.0F ? 0.0F : value;
  value = value > 255.0F ? 255.0F : value;
  return static_cast<std::uint8_t>(static_cast<int>(value));
}

ALLOSAUR_VECTORISED void blend_with_constant(std::uint8_t* values, std::size_t n, int grey, float factor) {
  for (std::size_t i = 0; i < n; ++i) values[i] = blend(grey, values[i], factor);
}

ALLOSAUR_VECTORISED std::int64_t luma_sum(const std::uint8_t* r, const std::uint8_t* g, const std::uint8_t* b,
                                          std::size_t n) {
  constexpr std::size_t kPiece = 65536;  // whose sum fits 32 bits
  std::int64_t total = 0;
  for (std::size_t begin = 0; begin < n; begin += kPiece) {
    const std::size_t end = std::min(n, begin + kPiece);
    std::int32_t sum = 0;
    for (std::size_t i = begin; i < end; ++i) sum += luma(r[i], g[i], b[i]);
    total += sum;
  }
  return total;
}

ALLOSAUR_VECTORISED std::int64_t value_sum(const std::uint8_t* values, std::size_t n) {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < n; ++i) total += values[i];
  return total;
}

ALLOSAUR_VECTORISED void saturate(std::uint8_t* __restrict r, std::uint8_t* __restrict g, std::uint8_t* __restrict b,
                                  std::size_t n, float factor) {
  for (std::size_t i = 0; i < n; ++i) {
    const int grey = luma(r[i], g[i], b[i]);
    r[i] = blend(grey, r[i], factor);
    g[i] = blend(grey, g[i], factor);
    b[i] = blend(grey, b[i], factor);
  }
}

/// To 8-bit HSV, hue + turn modulo 256, and back. Pillow computes partly in double precision; each expression here is
/// chosen so that float gives the same byte for every input (a test tries them all).
ALLOSAUR_VECTORISED void turn_hue(std::uint8_t* __restrict red, std::uint8_t* __restrict green,
                                  std::uint8_t* __restrict blue, std::size_t n, int turn) {
  for (std::size_t i = 0; i < n; ++i) {
    const int r = red[i], g = green[i], b = blue[i];
    const int value = std::max(std::max(r, g), b), least = std::min(std::min(r, g), b);
    const int chroma = value - least, middle = r + g + b - value - least;
    const float part = static_cast<float>(value - middle) / static_cast<float>(chroma > 0 ? chroma : 1);
    // The hue in sixths of the circle lies `part` above or below that of the colour without the middle's difference.
    const int if_red = b == least ? 1 : -1, if_green = b == least ? 1 : 3, if_blue = r == least ? 3 : 5;
    const int not_red = g == value ? if_green : if_blue;
    const int from = r == value ? if_red : not_red;
    const int up_red = b == least ? -1 : 1, up_green = -up_red, up_blue = r == least ? 1 : -1;
    const int up_not_red = g == value ? up_green : up_blue;
    const int sign = r == value ? up_red : up_not_red;
    float circle = (static_cast<float>(from) + static_cast<float>(sign) * part) / 6.0F;
    circle = circle < 0.0F ? circle + 1.0F : circle;
    const int hue = (static_cast<int>(circle * 255.0F) + turn) & 255;
    const int saturation =
        static_cast<int>(static_cast<float>(chroma) / static_cast<float>(value > 0 ? value : 1) * 255.0F);

    const int sixths = hue * 6, sector = (sixths + 1 + (sixths >> 8)) >> 8;  // sixths / 255
    const int offset = sixths - sector * 255;
    const int weight = (sector & 1) != 0 ? offset : 255 - offset;
    const auto v = static_cast<float>(value);
    const int low = static_cast<int>(v - static_cast<float>(value * saturation) * (1.0F / 255.0F) + 0.5F);
    const int mid = static_cast<int>(v - static_cast<float>(value * saturation * weight) * (1.0F / 65025.0F) + 0.5F);
    // Sector by sector: red is high mid low low mid high; green the same two sectors later, blue four.
    const auto channel = [&](int place) __attribute__((always_inline)) {
      place = place > 5 ? place - 6 : place;
      const int distance = std::abs(2 * place - 5), lower = distance == 1 ? low : mid;
      return static_cast<std::uint8_t>(distance == 5 ? value : lower);
    };
    const int k = sector == 6 ? 0 : sector;
    red[i] = channel(k);
    green[i] = channel(k + 4);
    blue[i] = channel(k + 2);
  }
}

ALLOSAUR_VECTORISED void to_grey(std::uint8_t* __restrict r, std::uint8_t* __restrict g, std::uint8_t* __restrict b,
                                 std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    const auto grey = static_cast<std::uint8_t>(luma(r[i], g[i], b[i]));
    r[i] = grey;
    g[i] = grey;
    b[i] = grey;
  }
}

ALLOSAUR_VECTORISED void invert_from(std::uint8_t* values, std::size_t n, int threshold) {
  for (std::size_t i = 0; i < n; ++i) {
    const int value = values[i];
    values[i] = static_cast<std::uint8_t>(value < threshold ? value : 255 - value);
  }
}

constexpr int kRadius = 4, kTaps = 2 * kRadius + 1;
using Weights = std::array<float, kTaps>;

/// out[i] = sum over k of weights[k] * in[i + k], of n floats.
ALLOSAUR_VECTORISED void blur_row(const float* __restrict in, std::size_t n, const Weights& weights,
                                  float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) {
    float sum = 0.0F;
    for (std::size_t k = 0; k < kTaps; ++k) sum += weights[k] * in[i + k];
    out[i] = sum;
  }
}

/// out[i] = sum over k of weights[k] * in[k][i], rounded to nearest.
ALLOSAUR_VECTORISED void blur_column(const std::array<const float*, kTaps>& in, std::size_t n, const Weights& weights,
                                     std::uint8_t* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) {
    float sum = 0.5F;
    for (std::size_t k = 0; k < kTaps; ++k) sum += weights[k] * in[k][i];
    out[i] = static_cast<std::uint8_t>(static_cast<int>(sum));
  }
}

ALLOSAUR_VECTORISED void widen(const std::uint8_t* in, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
}

/// Mirrors a position beyond the border, which is not repeated; more than once in crops of a few pixels.
std::size_t reflect(int at, int size) {
  const int period = std::max(1, 2 * (size - 1));
  at = std::abs(at) % period;
  return static_cast<std::size_t>(at < size ? at : period - at);
}

}  // namespace

void adjust_brightness(Crop& crop, double factor) {
  blend_with_constant(crop.values.data(), crop.values.size(), 0, static_cast<float>(factor));
}

void adjust_contrast(Crop& crop, double factor) {
  const std::size_t n = crop.channels == 3 ? crop.pixels() : crop.values.size();
  const std::int64_t sum =
      crop.channels == 3 ? luma_sum(crop.plane(0), crop.plane(1), crop.plane(2), n) : value_sum(crop.values.data(), n);
  const double mean = static_cast<double>(sum) / static_cast<double>(n);
  blend_with_constant(crop.values.data(), crop.values.size(), static_cast<int>(mean + 0.5), static_cast<float>(factor));
}

void adjust_saturation(Crop& crop, double factor) {
  if (crop.channels != 3) return;
  saturate(crop.plane(0), crop.plane(1), crop.plane(2), crop.pixels(), static_cast<float>(factor));
}

void adjust_hue(Crop& crop, double shift) {
  if (crop.channels != 3) return;
  // Hue is a byte that wraps; the shift is cut towards zero as torchvision does.
  turn_hue(crop.plane(0), crop.plane(1), crop.plane(2), crop.pixels(), static_cast<int>(shift * 255));
}

void convert_to_grayscale(Crop& crop) {
  if (crop.channels != 3) return;
  to_grey(crop.plane(0), crop.plane(1), crop.plane(2), crop.pixels());
}

void solarize(Crop& crop, int threshold) {
  invert_from(crop.values.data(), crop.values.size(), threshold);
}

void gaussian_blur(Crop& crop, double sigma) {
  Weights weights;
  float sum = 0;
  for (int k = -kRadius; k <= kRadius; ++k) {
    const double x = k / sigma;
    sum += weights[static_cast<std::size_t>(k + kRadius)] = static_cast<float>(std::exp(-0.5 * x * x));
  }
  for (float& weight : weights) weight /= sum;

  const auto width = static_cast<std::size_t>(crop.width), height = static_cast<std::size_t>(crop.height);
  thread_local std::vector<float> padded, rows;  // keep their memory from crop to crop
  padded.resize(width + 2 * kRadius);
  rows.resize(crop.pixels());
  for (int c = 0; c < crop.channels; ++c) {
    std::uint8_t* plane = crop.plane(c);
    for (std::size_t y = 0; y < height; ++y) {
      const std::uint8_t* row = plane + y * width;
      widen(row, width, &padded[kRadius]);
      for (int k = 1; k <= kRadius; ++k) {
        padded[static_cast<std::size_t>(kRadius - k)] = row[reflect(-k, crop.width)];
        padded[width + static_cast<std::size_t>(kRadius + k - 1)] = row[reflect(crop.width - 1 + k, crop.width)];
      }
      blur_row(padded.data(), width, weights, &rows[y * width]);
    }
    for (int y = 0; y < crop.height; ++y) {
      std::array<const float*, kTaps> in;
      for (int k = -kRadius; k <= kRadius; ++k)
        in[static_cast<std::size_t>(k + kRadius)] = &rows[reflect(y + k, crop.height) * width];
      blur_column(in, width, weights, plane + static_cast<std::size_t>(y) * width);
    }
  }
}

void gaussian_blur(io::Image& image, double sigma) {
  Crop crop;
  crop.resize(image.channels, image.width, image.height);
  const auto channels = static_cast<std::size_t>(image.channels), pixels = crop.pixels();
  for (std::size_t i = 0; i < image.pixels.size(); ++i)
    crop.values[i % channels * pixels + i / channels] = image.pixels[i];
  gaussian_blur(crop, sigma);
  for (std::size_t i = 0; i < image.pixels.size(); ++i)
    image.pixels[i] = crop.values[i % channels * pixels + i / channels];
}

}  // namespace allosaur::data
