#pragma once
#include <cstddef>
#include <span>

#include "io/image.hpp"

/// What image.cpp dispatches to, one file a format. Every function here takes bytes whose magic number has been
/// recognised and throws core::InputError for the rest of what can be wrong with them.
namespace allosaur::io::codec {

ImageInfo probe_jpeg(std::span<const std::byte> bytes);
ImageInfo probe_png(std::span<const std::byte> bytes);
ImageInfo probe_webp(std::span<const std::byte> bytes);
ImageInfo probe_tiff(std::span<const std::byte> bytes);
ImageInfo probe_bmp(std::span<const std::byte> bytes);
ImageInfo probe_pnm(std::span<const std::byte> bytes);
ImageInfo probe_gzip(std::span<const std::byte> bytes);  ///< of the image inside: ImageNet-22k has some

void decode_jpeg(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);
void decode_png(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);
void decode_webp(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);
void decode_tiff(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);
void decode_bmp(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);
void decode_pnm(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);
void decode_gzip(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into);

/// What the samples of a pixel mean. Those beyond its colours (alpha, infrared) are dropped when it is converted; a
/// pixel of no known colour can only be had as stored.
enum class Colour : std::uint8_t { grey, rgb, inverted_cmyk, unknown };

/// What a decoder fills Image::pixels with between prepare() and finish(): interleaved samples of 8 or 16 bits, the
/// latter in this machine's byte order.
struct Layout {
  std::int64_t width = 0, height = 0;
  int channels = 3, bits = 8;
  Colour colour = Colour::rgb;
};

/// Makes `into.pixels` as large as `layout` needs. Throws core::InputError, before anything is allocated, for an image
/// that is too large or cannot be converted to the channels asked for.
void prepare(Image& into, const Layout& layout, const DecodeOptions& options);
/// Turns the samples into the image asked for, in place.
void finish(Image& into, const Layout& layout, const DecodeOptions& options);

/// Throws core::InputError unless both sides are positive and their product is at most `max_pixels`.
void check_size(std::int64_t width, std::int64_t height, std::int64_t max_pixels = kMaxPixels);
/// Throws core::InputError when a file of `size` bytes cannot hold the pixels its header claims, since its compression
/// shrinks to one part in `best_ratio` at best: a header that lies takes no memory.
void check_claim(std::int64_t width, std::int64_t height, std::int64_t bits_per_pixel, std::size_t size,
                 std::int64_t best_ratio);
/// An image of zeros; the size is checked first.
Image allocate(std::int64_t width, std::int64_t height, int channels);
/// Throws std::logic_error unless `image` has 1 or 3 channels and as many pixels as it says.
void check_encodable(const Image& image);

inline const unsigned char* data_of(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

}  // namespace allosaur::io::codec
