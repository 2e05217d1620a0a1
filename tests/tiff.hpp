#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace allosaur::testing {

/// A TIFF file of 16-bit samples, interleaved, that are not compressed: grey with one channel, of no colour with
/// others.
inline std::vector<std::byte> tiff16(int width, int height, int channels, const std::vector<std::uint16_t>& samples) {
  constexpr std::uint16_t kShort = 3, kLong = 4, kBits = 16, kTags = 9;
  constexpr std::uint32_t kEnd = 8 + 2 + kTags * 12 + 4;  // of header and tags; the bits of each channel come next
  const auto count = static_cast<std::uint32_t>(channels);
  std::string file("II\x2a\0\x08\0\0\0", 8);
  const auto put = [&](auto value) { file.append(reinterpret_cast<const char*>(&value), sizeof value); };
  const auto tag = [&](std::uint16_t number, std::uint16_t type, std::uint32_t values, std::uint32_t value) {
    put(number);
    put(type);
    put(values);
    put(value);
  };
  put(kTags);
  tag(256, kLong, 1, static_cast<std::uint32_t>(width));
  tag(257, kLong, 1, static_cast<std::uint32_t>(height));
  tag(258, kShort, count, count > 2 ? kEnd : kBits << 16 | kBits);  // two fit into the tag itself
  tag(259, kShort, 1, 1);
  tag(262, kShort, 1, 1);
  tag(273, kLong, 1, kEnd + 2 * count);
  tag(277, kShort, 1, count);
  tag(278, kLong, 1, static_cast<std::uint32_t>(height));
  tag(279, kLong, 1, static_cast<std::uint32_t>(2 * samples.size()));
  put(std::uint32_t{0});
  for (int c = 0; c < channels; ++c) put(kBits);
  for (const std::uint16_t sample : samples) put(sample);
  const auto bytes = std::as_bytes(std::span(file));
  return {bytes.begin(), bytes.end()};
}

}  // namespace allosaur::testing
