#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace allosaur::io {

/// An 8-bit image, rows top to bottom, interleaved: pixels.size() == width * height * channels.
struct Image {
  int width = 0, height = 0;
  int channels = 3;  // 3 = RGB, 1 = grey (only from decode_grey and for encoding)
  std::vector<std::uint8_t> pixels;
};

enum class ImageFormat : std::uint8_t { jpeg, png, webp };

struct ImageInfo {
  int width = 0, height = 0;
  ImageFormat format = ImageFormat::jpeg;
};

/// Guards against decompression bombs; an image past it is refused before anything is allocated.
inline constexpr std::int64_t kMaxPixels = 512LL * 1024 * 1024;

/// Format by content (never by extension) and size, from the header alone. Throws core::InputError with the reason.
ImageInfo probe_image(std::span<const std::byte> bytes);

/// Decodes JPEG (grey, CMYK, YCCK, progressive), PNG (any depth, palette, alpha composited on nothing: dropped) and
/// WebP to 8-bit RGB. 16-bit samples keep their high byte. EXIF orientation is not applied (as the published pipeline).
/// A truncated or damaged file throws core::InputError with the reason.
Image decode_image(std::span<const std::byte> bytes);

/// One channel as stored, 8 or 16 bit (label and depth maps): PNG only.
std::vector<std::uint16_t> decode_grey_png(std::span<const std::byte> bytes, int& width, int& height);

std::vector<std::byte> encode_jpeg(const Image& image, int quality);
std::vector<std::byte> encode_png(const Image& image);
std::vector<std::byte> encode_grey16_png(std::span<const std::uint16_t> values, int width, int height);

/// Resamples to width x height with antialiasing, value for value as Pillow does (bicubic a = -0.5, support widened
/// when shrinking, rows before columns). `box`: the source rectangle in pixels, inside the image; as if the image had
/// been cropped to it first (a fractional box: rounded outwards), pixels outside contribute nothing. The whole image by
/// default.
struct Box {
  double left, top, width, height;
};
Image resize_bicubic(const Image& image, int width, int height);
Image resize_bicubic(const Image& image, const Box& box, int width, int height);

}  // namespace allosaur::io
