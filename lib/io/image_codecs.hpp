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

Image decode_jpeg(std::span<const std::byte> bytes);
Image decode_png(std::span<const std::byte> bytes);
Image decode_webp(std::span<const std::byte> bytes);

/// Throws core::InputError unless both sides are positive and their product is at most kMaxPixels.
void check_size(std::int64_t width, std::int64_t height);
/// An image of zeros; the size is checked first.
Image allocate(std::int64_t width, std::int64_t height, int channels);
/// Throws std::logic_error unless `image` has 1 or 3 channels and as many pixels as it says.
void check_encodable(const Image& image);

inline const unsigned char* data_of(std::span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

}  // namespace allosaur::io::codec
