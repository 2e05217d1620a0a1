#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace allosaur::io {

/// An 8-bit image, rows top to bottom, interleaved: pixels.size() == width * height * channels.
struct Image {
  int width = 0, height = 0;
  int channels = 3;  // 1 = grey, 3 = RGB, others as stored in the file
  std::vector<std::uint8_t> pixels;
};

enum class ImageFormat : std::uint8_t { jpeg, png, webp, tiff, bmp, pnm };

struct ImageInfo {
  int width = 0, height = 0;
  ImageFormat format = ImageFormat::jpeg;
  int channels = 3;  // samples a pixel; a palette counts as its colours: 3 channels of 8 bits
  int bits = 8;      // of a sample, as stored
};

/// The most that can be asked for as DecodeOptions::max_pixels.
inline constexpr std::int64_t kMaxPixels = 512LL * 1024 * 1024;

struct DecodeOptions {
  /// 3: RGB (grey repeated, alpha dropped, CMYK converted). 1: grey (of colours, Pillow's luma). Any other number: the
  /// samples as stored, of which a pixel must have exactly as many (RGBA: 4).
  int channels = 3;
  /// 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size by its DCT, sides rounded up. Other formats come
  /// whole: Image says what came.
  int denominator = 1;
  /// 16-bit samples from `low` to `high` are spread linearly over 0..255, others clipped. The whole range keeps the
  /// high byte.
  std::array<int, 2> range16 = {0, 65535};
  /// Guards against decompression bombs, and bounds the memory of who decodes: an image of more pixels (before it is
  /// reduced), or of more than three times as many bytes, is refused before anything is allocated.
  std::int64_t max_pixels = kMaxPixels;
};

/// Format by content (never by extension), size and samples, from the header alone. Throws core::InputError with the
/// reason.
ImageInfo probe_image(std::span<const std::byte> bytes);

/// Decodes to 8 bits a sample:
/// - JPEG: grey, colour, CMYK, YCCK, progressive;
/// - PNG: any depth, palette, alpha;
/// - WebP: still images;
/// - TIFF: 8 and 16 bits, grey, palette, RGB, CMYK or any number of channels, in strips or tiles, one page (smaller
///   copies beside it do not count); none, PackBits, LZW, deflate, JPEG or Zstandard compression;
/// - BMP: not compressed, 1, 4, 8, 24 or 32 bits a pixel;
/// - PNM: bitmap, grey and RGB, in digits or bytes; samples are scaled by their maximum.
/// EXIF orientation is not applied (as the published pipeline). A truncated or damaged file, one that has not the
/// samples asked for, or one that there is no memory for, throws core::InputError with the reason.
Image decode_image(std::span<const std::byte> bytes, const DecodeOptions& options = {});
/// The same into the memory of `into`, which is allocated anew to grow, and to give back what a much larger image took.
/// After an error its content is unspecified.
void decode_image(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);

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
