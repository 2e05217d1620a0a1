#include "io/image.hpp"

#include <algorithm>
#include <new>
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

struct Codec {
  ImageInfo (*probe)(std::span<const std::byte>);
  void (*decode)(std::span<const std::byte>, const DecodeOptions&, Image&);
};

Codec codec_of(std::span<const std::byte> bytes) {
  if (bytes.empty()) throw core::InputError("The image file is empty.");
  if (has_at(bytes, 0, "\xFF\xD8\xFF")) return {codec::probe_jpeg, codec::decode_jpeg};
  if (has_at(bytes, 0, "\x89PNG\r\n\x1A\n")) return {codec::probe_png, codec::decode_png};
  if (has_at(bytes, 0, "RIFF") && has_at(bytes, 8, "WEBP")) return {codec::probe_webp, codec::decode_webp};
  using namespace std::string_view_literals;
  for (const std::string_view magic : {"II*\0"sv, "MM\0*"sv, "II+\0"sv, "MM\0+"sv}) {
    if (has_at(bytes, 0, magic)) return {codec::probe_tiff, codec::decode_tiff};
  }
  if (has_at(bytes, 0, "\x1F\x8B")) return {codec::probe_gzip, codec::decode_gzip};
  // The last two have only two letters for a magic number: what follows them has to fit.
  if (has_at(bytes, 0, "BM") && has_at(bytes, 15, "\0\0\0"sv)) return {codec::probe_bmp, codec::decode_bmp};
  if (bytes.size() > 2 && has_at(bytes, 0, "P")) {
    const int kind = std::to_integer<int>(bytes[1]), after = std::to_integer<int>(bytes[2]);
    const bool blank = after == ' ' || (after >= '\t' && after <= '\r') || after == '#';
    if (kind >= '1' && kind <= '6' && blank) return {codec::probe_pnm, codec::decode_pnm};
  }
  throw core::InputError("The content is neither JPEG, PNG, WebP, TIFF, BMP nor PNM.");
}

}  // namespace

ImageInfo probe_image(std::span<const std::byte> bytes) {
  return codec_of(bytes).probe(bytes);
}

Image decode_image(std::span<const std::byte> bytes, const DecodeOptions& options) {
  Image image;
  decode_image(bytes, options, image);
  return image;
}

void decode_image(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  const auto [low, high] = options.range16;
  constexpr std::array kDenominators = {1, 2, 4, 8};
  if (options.channels < 1 || low < 0 || low >= high || high > 65535 || options.max_pixels > kMaxPixels ||
      std::find(kDenominators.begin(), kDenominators.end(), options.denominator) == kDenominators.end()) {
    throw std::logic_error(
        fmt::format("decode_image: {} channels, 1/{} of the size, 16-bit samples from {} to {}, at most {} pixels",
                    options.channels, options.denominator, low, high, options.max_pixels));
  }
  try {
    codec_of(bytes).decode(bytes, options, into);
  } catch (const std::bad_alloc&) {
    throw core::InputError("There is not enough memory to decode the image.");
  }
}

namespace codec {

void check_size(std::int64_t width, std::int64_t height, std::int64_t max_pixels) {
  if (width < 1 || height < 1) throw core::InputError(fmt::format("The image has no pixels ({} x {}).", width, height));
  if (width > max_pixels / height) {
    throw core::InputError(
        fmt::format("The image is too large: {} x {}, at most {} pixels are decoded.", width, height, max_pixels));
  }
}

void check_claim(std::int64_t width, std::int64_t height, std::int64_t bits_per_pixel, std::size_t size,
                 std::int64_t best_ratio) {
  check_size(width, height);
  if (width * height * bits_per_pixel / 8 / best_ratio > static_cast<std::int64_t>(size)) {
    throw core::InputError(fmt::format(
        "The header claims {} x {} pixels, more than the file can hold in its {} bytes: it is damaged or cut off.",
        width, height, size));
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
