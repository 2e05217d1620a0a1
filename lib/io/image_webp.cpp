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
  check_size(features.width, features.height);
  return {features.width, features.height, ImageFormat::webp};
}

Image decode_webp(std::span<const std::byte> bytes) {
  const ImageInfo info = probe_webp(bytes);
  Image image = allocate(info.width, info.height, 3);
  if (WebPDecodeRGBInto(data_of(bytes), bytes.size(), image.pixels.data(), image.pixels.size(), info.width * 3) ==
      nullptr) {
    throw core::InputError("The WebP is damaged or ends early.");
  }
  return image;
}

}  // namespace allosaur::io::codec
