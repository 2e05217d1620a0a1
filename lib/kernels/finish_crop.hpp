#pragma once
#include <cstdint>

#include "kernels/crop_arithmetic.hpp"
#include "kernels/kernels.hpp"

namespace allosaur::kernels {

/// Finishes one crop (see FinishCrops) with a team of threads, all of which call this:
///   team.for_each(n, f)  calls f(i) for every i below n, and returns when all threads are done;
///   team.sum(n, f)       is the sum of f(i) over these, the same in every thread;
///   put(i, x)            writes element i of the output.
/// Functions capture by value: bytes that are written may be anything, captured references included, to the compiler.
template <class Team, class Put>
ALLOSAUR_DEVICE void finish_crop(const Team& team, const FinishCrops& k, std::int64_t crop, const Put& put) {
  const int width = static_cast<int>(k.width), height = static_cast<int>(k.height);
  const int channels = static_cast<int>(k.channels), pixels = width * height, values = pixels * channels;
  const CropRecipe& recipe = k.recipes[crop];
  std::uint8_t* const all = k.values + crop * values;
  const bool rgb = channels == 3;
  std::uint8_t *const r = all, *const g = rgb ? r + pixels : r, *const b = rgb ? g + pixels : r;
  const auto blend_with = [&](int grey, float factor) {
    team.for_each(values, [=](int i) { all[i] = blend(grey, all[i], factor); });
  };
  const auto for_colours = [&](const auto& change) {
    if (!rgb) return;
    team.for_each(pixels, [=](int i) {
      const Rgb to = change(Rgb{r[i], g[i], b[i]});
      r[i] = to.r;
      g[i] = to.g;
      b[i] = to.b;
    });
  };

  if (recipe.jitter) {
    for (int place = 0; place < 4; ++place) {
      switch (recipe.order[place]) {
        case ColorOp::brightness:
          blend_with(0, recipe.brightness);
          break;
        case ColorOp::contrast: {
          const std::int64_t sum = rgb ? team.sum(pixels, [=](int i) { return luma(r[i], g[i], b[i]); })
                                       : team.sum(values, [=](int i) { return static_cast<int>(all[i]); });
          blend_with(rounded_mean(sum, rgb ? pixels : values), recipe.contrast);
          break;
        }
        case ColorOp::saturation:
          for_colours([factor = recipe.saturation](Rgb from) { return saturated(from, factor); });
          break;
        case ColorOp::hue:
          for_colours([turn = recipe.hue](Rgb from) { return turned(from, turn); });
          break;
      }
    }
  }
  if (recipe.grey) {
    for_colours([](Rgb from) {
      const auto grey = static_cast<std::uint8_t>(luma(from.r, from.g, from.b));
      return Rgb{grey, grey, grey};
    });
  }
  if (recipe.blur) {
    float weights[kBlurTaps];
    for (int tap = 0; tap < kBlurTaps; ++tap) weights[tap] = recipe.blur_weights[tap];
    float* const rows = k.workspace + crop * pixels;
    for (std::uint8_t* plane = all; plane != all + values; plane += pixels) {
      team.for_each(pixels, [=](int i) {
        const int y = i / width, x = i - y * width;
        const std::uint8_t* const row = plane + y * width;
        rows[i] = blurred(0.0F, weights,
                          [=](int tap) { return static_cast<float>(row[reflected(x + tap - kBlurRadius, width)]); });
      });
      team.for_each(pixels, [=](int i) {
        const int y = i / width, x = i - y * width;
        plane[i] = blurred_and_rounded(
            weights, [=](int tap) { return rows[reflected(y + tap - kBlurRadius, height) * width + x]; });
      });
    }
  }
  const int threshold = recipe.solarize ? recipe.solarize_threshold : 256;
  for (int c = 0; c < channels; ++c) {
    const std::int64_t first = static_cast<std::int64_t>(c) * pixels, place = crop * values + first;
    const std::uint8_t* const plane = all + first;
    const float mean = k.mean[c], deviation = k.deviation[c];
    team.for_each(pixels,
                  [=](int i) { put(place + i, normalised(inverted_from(plane[i], threshold), mean, deviation)); });
  }
}

}  // namespace allosaur::kernels
