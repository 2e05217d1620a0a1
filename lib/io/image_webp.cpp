#include <webp/decode.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io::codec {

ImageInfo probe_webp(std::span<const std::byte> bytes) {
  WebPBitstreamFeatures features;
  if (WebPGetFeatures(data_of(bytes), bytes.size(), &features) != VP8_STATUS_OK) {
    throw core::InputError("The WebP is damaged: its header cannot be read.");
  }
  if (features.has_animation != 0) throw core::InputError("The WebP is an animation: only still images are read.");
  // With loss a macroblock of 16 x 16 pixels takes three bits at least, since the odds of its modes are fixed. Without
  // loss a picture of one colour takes none.
  constexpr int kLossy = 1;
  constexpr std::int64_t kPixelsPerByte = 16 * 16 * 8 / 3;
  check_size(features.width, features.height);
  if (features.format == kLossy) check_claim(features.width, features.height, 8, bytes.size(), kPixelsPerByte);
  return {features.width, features.height, ImageFormat::webp, features.has_alpha != 0 ? 4 : 3};
}

void decode_webp(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  const ImageInfo info = probe_webp(bytes);
  const int channels = info.channels == options.channels ? info.channels : 3;
  const Layout layout{info.width, info.height, channels, 8, Colour::rgb};
  prepare(into, layout, options);
  const auto decode = channels == 4 ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
  if (decode(data_of(bytes), bytes.size(), into.pixels.data(), into.pixels.size(), info.width * channels) == nullptr) {
    throw core::InputError("The WebP is damaged or ends early.");
  }
  finish(into, layout, options);
}

}  // namespace allosaur::io::codec
