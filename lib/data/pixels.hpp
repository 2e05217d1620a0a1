#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "core/options.hpp"
#include "io/image.hpp"

namespace allosaur::data {

/// What images are to a network: how many channels, and how the values of a file become numbers.
struct PixelConfig {
  int channels = 3;                         ///< see io::DecodeOptions
  std::array<int, 2> range16 = {0, 65535};  ///< see io::DecodeOptions
  /// One a channel, of values in [0, 1]: subtracted, divided by. ImageNet's.
  std::vector<double> mean = {0.485, 0.456, 0.406}, deviation = {0.229, 0.224, 0.225};
  std::int64_t max_pixels = 178'956'970;  ///< see io::DecodeOptions; Pillow's limit
};

/// Declares `data.channels`, `data.range16`, `data.mean`, `data.std` and `data.max_pixels`.
void declare_pixel_options(core::Options& options);

/// Reads them. Without `data.mean` and `data.std`, 3 channels have ImageNet's, others 0.5 and 0.25 each. Throws
/// core::UsageError naming the key that makes no sense.
PixelConfig read_pixel_config(const core::Options& options);

/// Throws core::UsageError naming the key, unless there are 1 to 64 channels with a mean and a positive deviation each,
/// and the range is one of 16-bit values.
void check_pixels(const PixelConfig& pixels);

/// How a file becomes such an image, at 1/denominator of its size where it can (see io::DecodeOptions).
io::DecodeOptions decode_options(const PixelConfig& pixels, int denominator = 1);

}  // namespace allosaur::data
