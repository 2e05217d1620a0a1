#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "core/error.hpp"
#include "core/files.hpp"
#include "io/image.hpp"
#include "testing.hpp"

/// The small images of tests/data/io, which make_fixtures.py wrote.
namespace allosaur::testing {

inline std::string fixture(const std::string& name) {
  return core::read_text(data_directory() / "io" / name);
}

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

/// A fixture's expected pixels: width, height, RGB.
inline io::Image expected(const std::string& name) {
  const std::string text = fixture(name);
  io::Image image;
  std::memcpy(&image.width, text.data(), 4);
  std::memcpy(&image.height, text.data() + 4, 4);
  image.pixels.assign(text.begin() + 8, text.end());
  return image;
}

/// Largest difference of any value; 256 when sizes differ.
inline int difference(const io::Image& a, const io::Image& b) {
  if (a.width != b.width || a.height != b.height || a.pixels.size() != b.pixels.size()) return 256;
  int largest = 0;
  for (std::size_t i = 0; i < a.pixels.size(); ++i) largest = std::max(largest, std::abs(a.pixels[i] - b.pixels[i]));
  return largest;
}

/// The decoded image, or none when the bytes were refused with an InputError; anything else fails the test.
inline std::optional<io::Image> try_decode(const std::string& content) {
  try {
    return io::decode_image(bytes_of(content));
  } catch (const core::InputError&) {
    return std::nullopt;
  }
}

}  // namespace allosaur::testing
