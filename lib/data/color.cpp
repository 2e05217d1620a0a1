#include "data/color.hpp"

#include <algorithm>
#include <cmath>

#include "kernels/crop_arithmetic.hpp"
#include "kernels/vector_math.hpp"

// Every loop here is written for the compiler to vectorise, over planes.

namespace allosaur::data {

using namespace kernels;

namespace {

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
    const Rgb to = saturated({r[i], g[i], b[i]}, factor);
    r[i] = to.r;
    g[i] = to.g;
    b[i] = to.b;
  }
}

ALLOSAUR_VECTORISED void turn_hue(std::uint8_t* __restrict r, std::uint8_t* __restrict g, std::uint8_t* __restrict b,
                                  std::size_t n, int turn) {
  for (std::size_t i = 0; i < n; ++i) {
    const Rgb to = turned({r[i], g[i], b[i]}, turn);
    r[i] = to.r;
    g[i] = to.g;
    b[i] = to.b;
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
  for (std::size_t i = 0; i < n; ++i) values[i] = inverted_from(values[i], threshold);
}

/// out[i] = sum over k of weights[k] * in[i + k], of n floats.
ALLOSAUR_VECTORISED void blur_row(const float* __restrict in, std::size_t n, const BlurWeights& weights,
                                  float* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) {
    const float* taps = in + i;
    out[i] = blurred(0.0F, weights.data(), [taps](int k) { return taps[k]; });
  }
}

/// out[i] = sum over k of weights[k] * in[k][i], rounded to nearest.
ALLOSAUR_VECTORISED void blur_column(const std::array<const float*, kBlurTaps>& in, std::size_t n,
                                     const BlurWeights& weights, std::uint8_t* __restrict out) {
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = blurred_and_rounded(weights.data(), [taps = in.data(), i](int k) { return taps[k][i]; });
  }
}

ALLOSAUR_VECTORISED void widen(const std::uint8_t* in, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
}

}  // namespace

void adjust_brightness(Crop& crop, double factor) {
  blend_with_constant(crop.values.data(), crop.values.size(), 0, static_cast<float>(factor));
}

void adjust_contrast(Crop& crop, double factor) {
  const std::size_t n = crop.channels == 3 ? crop.pixels() : crop.values.size();
  const std::int64_t sum =
      crop.channels == 3 ? luma_sum(crop.plane(0), crop.plane(1), crop.plane(2), n) : value_sum(crop.values.data(), n);
  const int mean = rounded_mean(sum, static_cast<std::int64_t>(n));
  blend_with_constant(crop.values.data(), crop.values.size(), mean, static_cast<float>(factor));
}

void adjust_saturation(Crop& crop, double factor) {
  if (crop.channels != 3) return;
  saturate(crop.plane(0), crop.plane(1), crop.plane(2), crop.pixels(), static_cast<float>(factor));
}

void adjust_hue(Crop& crop, double shift) {
  if (crop.channels != 3) return;
  turn_hue(crop.plane(0), crop.plane(1), crop.plane(2), crop.pixels(), hue_turn(shift));
}

void convert_to_grayscale(Crop& crop) {
  if (crop.channels != 3) return;
  to_grey(crop.plane(0), crop.plane(1), crop.plane(2), crop.pixels());
}

void solarize(Crop& crop, int threshold) {
  invert_from(crop.values.data(), crop.values.size(), threshold);
}

int hue_turn(double shift) {
  return static_cast<int>(shift * 255);
}

BlurWeights blur_weights(double sigma) {
  BlurWeights weights;
  float sum = 0;
  for (int k = -kBlurRadius; k <= kBlurRadius; ++k) {
    const double x = k / sigma;
    sum += weights[static_cast<std::size_t>(k + kBlurRadius)] = static_cast<float>(std::exp(-0.5 * x * x));
  }
  for (float& weight : weights) weight /= sum;
  return weights;
}

void gaussian_blur(Crop& crop, double sigma) {
  const BlurWeights weights = blur_weights(sigma);
  const auto width = static_cast<std::size_t>(crop.width), height = static_cast<std::size_t>(crop.height);
  thread_local std::vector<float> padded, rows;  // keep their memory from crop to crop
  padded.resize(width + 2 * kBlurRadius);
  rows.resize(crop.pixels());
  for (int c = 0; c < crop.channels; ++c) {
    std::uint8_t* plane = crop.plane(c);
    for (std::size_t y = 0; y < height; ++y) {
      const std::uint8_t* row = plane + y * width;
      widen(row, width, &padded[kBlurRadius]);
      for (int k = 1; k <= kBlurRadius; ++k) {
        padded[static_cast<std::size_t>(kBlurRadius - k)] = row[reflected(-k, crop.width)];
        padded[width + static_cast<std::size_t>(kBlurRadius + k - 1)] = row[reflected(crop.width - 1 + k, crop.width)];
      }
      blur_row(padded.data(), width, weights, &rows[y * width]);
    }
    for (int y = 0; y < crop.height; ++y) {
      std::array<const float*, kBlurTaps> in;
      for (int k = -kBlurRadius; k <= kBlurRadius; ++k)
        in[static_cast<std::size_t>(k + kBlurRadius)] =
            &rows[static_cast<std::size_t>(reflected(y + k, crop.height)) * width];
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
