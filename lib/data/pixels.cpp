#include "data/pixels.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"

namespace allosaur::data {
namespace {

constexpr const char *kChannels = "data.channels", *kRange16 = "data.range16", *kMean = "data.mean", *kStd = "data.std",
                     *kMaxPixels = "data.max_pixels";
constexpr std::int64_t kMaxChannels = 64;
// Of channels that nothing is known of: values in [0, 1] become [-2, 2].
constexpr double kPlainMean = 0.5, kPlainDeviation = 0.25;

void check_channels(std::int64_t channels) {
  if (channels < 1 || channels > kMaxChannels)
    throw core::UsageError(fmt::format("{} is {}; it must be 1 to {}.", kChannels, channels, kMaxChannels));
}

void check_range16(std::int64_t low, std::int64_t high) {
  if (low < 0 || low >= high || high > 65535)
    throw core::UsageError(fmt::format("{} is {},{}; it must be two 16-bit values, the lower first, such as 0,4095.",
                                       kRange16, low, high));
}

}  // namespace

void declare_pixel_options(core::Options& options) {
  options.section("Pixels");
  options
      .add(kChannels, std::int64_t{3},
           "channels of an image and of what a network reads: 3 (RGB), 1 (grey), or as many as the files have, whose "
           "samples are then taken as they are")
      .within(1, kMaxChannels);
  options
      .add(kRange16, std::vector<std::int64_t>{0, 65535},
           "values of 16-bit files that become black and white (0,4095 for 12 bits in 16)")
      .values(2);
  options.add(kMean, std::vector<double>{},
              "mean of each channel, subtracted from values in [0, 1]; none: ImageNet's for 3 channels, else 0.5");
  options.add(kStd, std::vector<double>{},
              "deviation of each channel, divided by; none: ImageNet's for 3 channels, else 0.25");
  options
      .add(kMaxPixels, PixelConfig().max_pixels,
           "images of more pixels, or of three times as many bytes, count as broken: what a thread that decodes may "
           "take")
      .within(1, static_cast<double>(io::kMaxPixels));
}

PixelConfig read_pixel_config(const core::Options& options) {
  PixelConfig pixels;
  const std::int64_t channels = options.integer(kChannels);
  const auto& range16 = options.get<std::vector<std::int64_t>>(kRange16);
  check_range16(range16[0], range16[1]);
  pixels.range16 = {static_cast<int>(range16[0]), static_cast<int>(range16[1])};
  if (channels != pixels.channels) {
    pixels.channels = static_cast<int>(channels);
    pixels.mean.assign(static_cast<std::size_t>(channels), kPlainMean);
    pixels.deviation.assign(static_cast<std::size_t>(channels), kPlainDeviation);
  }
  for (auto [key, values] : {std::pair{kMean, &pixels.mean}, {kStd, &pixels.deviation}})
    if (const auto& given = options.get<std::vector<double>>(key); !given.empty()) *values = given;
  pixels.max_pixels = options.integer(kMaxPixels);
  check_pixels(pixels);
  return pixels;
}

void check_pixels(const PixelConfig& pixels) {
  check_channels(pixels.channels);
  check_range16(pixels.range16[0], pixels.range16[1]);
  const auto channels = static_cast<std::size_t>(pixels.channels);
  for (const auto& [key, values] : {std::pair{kMean, &pixels.mean}, {kStd, &pixels.deviation}})
    if (values->size() != channels)
      throw core::UsageError(fmt::format("{} has {} values, but images of {} = {} need one a channel.", key,
                                         values->size(), kChannels, channels));
  if (std::ranges::any_of(pixels.deviation, [](double deviation) { return !(deviation > 0); }))
    throw core::UsageError(
        fmt::format("{} is {}; each value must be above 0.", kStd, fmt::join(pixels.deviation, ",")));
}

io::DecodeOptions decode_options(const PixelConfig& pixels, int denominator) {
  return {.channels = pixels.channels,
          .denominator = denominator,
          .range16 = pixels.range16,
          .max_pixels = pixels.max_pixels};
}

}  // namespace allosaur::data
