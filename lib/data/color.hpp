#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "io/image.hpp"
#include "kernels/kernels.hpp"

/// The single operations of the augmentation, in place, with the arithmetic of Pillow and torchvision on 8-bit images:
/// value for value (of the blur, all but one in a thousand, which differ by one).
namespace allosaur::data {

/// A crop under way: 8-bit planes.
struct Crop {
  int channels = 3, width = 0, height = 0;
  std::vector<std::uint8_t> values;  // [channels, height, width]

  void resize(int channel_count, int columns, int rows) {
    channels = channel_count;
    width = columns;
    height = rows;
    values.resize(pixels() * static_cast<std::size_t>(channels));
  }
  std::size_t pixels() const { return static_cast<std::size_t>(width) * static_cast<std::size_t>(height); }
  std::uint8_t* plane(int channel) { return values.data() + pixels() * static_cast<std::size_t>(channel); }
  const std::uint8_t* plane(int channel) const { return values.data() + pixels() * static_cast<std::size_t>(channel); }
};

// `factor` 1 (hue: 0) leaves the crop as it is.
void adjust_brightness(Crop& crop, double factor);  ///< blend with black
void adjust_contrast(Crop& crop,
                     double factor);           ///< blend with the crop's mean: of its grey; without RGB, of all values
void gaussian_blur(Crop& crop, double sigma);  ///< 9 x 9, borders reflected
void solarize(Crop& crop, int threshold);      ///< inverts values of `threshold` and more

void gaussian_blur(io::Image& image, double sigma);  ///< as of a crop

using BlurWeights = std::array<float, kernels::kBlurTaps>;
BlurWeights blur_weights(double sigma);  ///< of the neighbours, in order; their sum is 1

// Of RGB crops; others are left as they are.
void adjust_saturation(Crop& crop, double factor);  ///< blend with the grey crop
void adjust_hue(Crop& crop, double shift);          ///< turns the hue by `shift` of the circle, in Pillow's 8-bit HSV
void convert_to_grayscale(Crop& crop);              ///< ITU-R 601-2 luma in all three channels

/// The turn of an 8-bit hue, which wraps: cut towards zero, as torchvision does.
int hue_turn(double shift);

}  // namespace allosaur::data
