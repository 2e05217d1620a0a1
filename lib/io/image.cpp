#include "io/image.hpp"

#include <optional>
#include <stdexcept>
#include <string_view>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io {
namespace {

bool has_at(std::span<const std::byte> bytes, std::size_t offset, std::string_view magic) {
  return bytes.size() >= offset + magic.size() &&
         std::string_view(reinterpret_cast<const char*>(bytes.data()) + offset, magic.size()) == magic;
}

ImageFormat format_of(std::span<const std::byte> bytes) {
  if (bytes.empty()) throw core::InputError("The image file is empty.");
  if (has_at(bytes, 0, "\xFF\xD8\xFF")) return ImageFormat::jpeg;
  if (has_at(bytes, 0, "\x89PNG\r\n\x1A\n")) return ImageFormat::png;
  if (has_at(bytes, 0, "RIFF") && has_at(bytes, 8, "WEBP")) return ImageFormat::webp;
  throw core::InputError("The content is neither JPEG, PNG nor WebP.");
}

}  // namespace

ImageInfo probe_image(std::span<const std::byte> bytes) {
  switch (format_of(bytes)) {
    case ImageFormat::jpeg:
      return codec::probe_jpeg(bytes);
    case ImageFormat::png:
      return codec::probe_png(bytes);
    case ImageFormat::webp:
      return codec::probe_webp(bytes);
  }
  throw std::logic_error("probe_image: unknown format");
}

Image decode_image(std::span<const std::byte> bytes) {
  switch (format_of(bytes)) {
    case ImageFormat::jpeg:
      return codec::decode_jpeg(bytes);
    case ImageFormat::png:
      return codec::decode_png(bytes);
    case ImageFormat::webp:
      return codec::decode_webp(bytes);
  }
  throw std::logic_error("decode_image: unknown format");
}

namespace codec {

void check_size(std::int64_t width, std::int64_t height) {
  if (width < 1 || height < 1) throw core::InputError(fmt::format("The image has no pixels ({} x {}).", width, height));
  if (width > kMaxPixels / height) {
    throw core::InputError(
        fmt::format("The image is too large: {} x {}, at most {} pixels are decoded.", width, height, kMaxPixels));
  }
}

Image allocate(std::int64_t width, std::int64_t height, int channels) {
  check_size(width, height);
  Image image{static_cast<int>(width), static_cast<int>(height), channels, {}};
  image.pixels.resize(static_cast<std::size_t>(width * height * channels));
  return image;
}

void check_encodable(const Image& image) {
  const std::int64_t values = std::int64_t{image.width} * image.height * image.channels;
  if (image.width < 1 || image.height < 1 || (image.channels != 1 && image.channels != 3) ||
      std::int64_t(image.pixels.size()) != values) {
    throw std::logic_error(fmt::format("an image of {} x {} x {} with {} values cannot be used", image.width,
                                       image.height, image.channels, image.pixels.size()));
  }
}

}  // namespace codec
}  // namespace allosaur::io
