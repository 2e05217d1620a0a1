#pragma once
// What Pillow and torchvision do to the values of 8-bit crops, value by value: for loops on the host that the compiler
// vectorises (no branches, no calls) and for CUDA kernels alike. Files that include this are compiled without
// contraction to fused multiply-adds, which would make results depend on the processor and differ from Pillow's.
#include <cstdint>

#include "kernels/kernels.hpp"

/// Device code where nvcc compiles it; else a helper of loops, inlined, so that it takes the instruction set of its
/// caller.
#ifdef __CUDACC__
#define ALLOSAUR_DEVICE __device__ __forceinline__
#else
#define ALLOSAUR_DEVICE __attribute__((always_inline)) inline
#endif

namespace allosaur::kernels {

/// Pillow's luma: 299/587/114 in 16-bit fixed point, rounded.
ALLOSAUR_DEVICE int luma(int r, int g, int b) {
  return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
}

/// Pillow's Image.blend of one value: from + factor * (to - from), clipped and truncated.
ALLOSAUR_DEVICE std::uint8_t blend(int from, int to, float factor) {
  float value = static_cast<float>(from) + factor * static_cast<float>(to - from);
  value = value < 0.0F ? 0.0F : value;
  value = value > 255.0F ? 255.0F : value;
  return static_cast<std::uint8_t>(static_cast<int>(value));
}

/// sum / n, rounded to nearest, a half upwards.
ALLOSAUR_DEVICE int rounded_mean(std::int64_t sum, std::int64_t n) {
  return static_cast<int>((2 * sum + n) / (2 * n));
}

struct Rgb {
  std::uint8_t r, g, b;
};

ALLOSAUR_DEVICE Rgb saturated(Rgb from, float factor) {
  const int grey = luma(from.r, from.g, from.b);
  return {blend(grey, from.r, factor), blend(grey, from.g, factor), blend(grey, from.b, factor)};
}

/// Of a colour in a sector of the hue: red is high mid low low mid high, from sector 0 to 5; green the same two sectors
/// later, blue four.
ALLOSAUR_DEVICE std::uint8_t hsv_channel(int sector, int high, int low, int mid) {
  sector = sector > 5 ? sector - 6 : sector;
  const int place = 2 * sector - 5, distance = place < 0 ? -place : place;
  const int lower = distance == 1 ? low : mid;
  return static_cast<std::uint8_t>(distance == 5 ? high : lower);
}

/// To 8-bit HSV, hue + turn modulo 256, and back. Pillow computes partly in double precision; each expression here is
/// chosen so that float gives the same byte for every input (a test tries them all).
ALLOSAUR_DEVICE Rgb turned(Rgb from, int turn) {
  const int r = from.r, g = from.g, b = from.b;
  const int larger = r > g ? r : g, smaller = r < g ? r : g;
  const int value = larger > b ? larger : b, least = smaller < b ? smaller : b;
  const int chroma = value - least, middle = r + g + b - value - least;
  const float part = static_cast<float>(value - middle) / static_cast<float>(chroma > 0 ? chroma : 1);
  // The hue in sixths of the circle lies `part` above or below that of the colour without the middle's difference.
  const int if_red = b == least ? 1 : -1, if_green = b == least ? 1 : 3, if_blue = r == least ? 3 : 5;
  const int not_red = g == value ? if_green : if_blue;
  const int origin = r == value ? if_red : not_red;
  const int up_red = b == least ? -1 : 1, up_green = -up_red, up_blue = r == least ? 1 : -1;
  const int up_not_red = g == value ? up_green : up_blue;
  const int sign = r == value ? up_red : up_not_red;
  float circle = (static_cast<float>(origin) + static_cast<float>(sign) * part) / 6.0F;
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
  const int k = sector == 6 ? 0 : sector;
  return {hsv_channel(k, value, low, mid), hsv_channel(k + 4, value, low, mid), hsv_channel(k + 2, value, low, mid)};
}

ALLOSAUR_DEVICE std::uint8_t inverted_from(int value, int threshold) {
  return static_cast<std::uint8_t>(value < threshold ? value : 255 - value);
}

/// start + the sum over k of weights[k] * tap(k), in this order. Blur is separable: sums along rows are kept in
/// float32, those along columns rounded to nearest.
template <class Tap>
ALLOSAUR_DEVICE float blurred(float start, const float* weights, const Tap& tap) {
  float sum = start;
  for (int k = 0; k < kBlurTaps; ++k) sum += weights[k] * tap(k);
  return sum;
}
template <class Tap>
ALLOSAUR_DEVICE std::uint8_t blurred_and_rounded(const float* weights, const Tap& tap) {
  return static_cast<std::uint8_t>(static_cast<int>(blurred(0.5F, weights, tap)));
}

/// Mirrors a position beyond the border, which is not repeated; more than once in crops of a few pixels.
ALLOSAUR_DEVICE int reflected(int at, int size) {
  const int period = size > 1 ? 2 * (size - 1) : 1;
  at = (at < 0 ? -at : at) % period;
  return at < size ? at : period - at;
}

/// What the network reads.
ALLOSAUR_DEVICE float normalised(int value, float mean, float deviation) {
  return (static_cast<float>(value) / 255.0F - mean) / deviation;
}

}  // namespace allosaur::kernels
