#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

// From the samples a file has to those asked for, in the memory that the decoder filled.

namespace allosaur::io::codec {
namespace {

constexpr std::size_t kKept = 64U << 20;  // bytes that a buffer may keep, however small the next images are

using Rgb = std::array<std::uint8_t, 3>;
using Grey = std::array<std::uint8_t, 1>;

/// ITU-R 601 with Pillow's 16 fractional bits.
Grey luma(Rgb colour) {
  return {static_cast<std::uint8_t>((colour[0] * 19595u + colour[1] * 38470u + colour[2] * 7471u + 0x8000u) >> 16)};
}

Rgb rgb_of_grey(const std::uint8_t* pixel) {
  return {pixel[0], pixel[0], pixel[0]};
}

Rgb rgb_of_rgb(const std::uint8_t* pixel) {
  return {pixel[0], pixel[1], pixel[2]};
}

/// As Pillow converts.
Rgb rgb_of_inverted_cmyk(const std::uint8_t* inks) {
  const auto mix = [inks](int ink) { return static_cast<std::uint8_t>((inks[ink] * inks[3] + 127) / 255); };
  return {mix(0), mix(1), mix(2)};
}

/// Replaces every pixel of `from` samples by `convert(pixel)`: from the front when they shrink, else from the back.
template <class Convert>
void replace_pixels(std::vector<std::uint8_t>& pixels, std::size_t from, Convert convert) {
  const std::size_t count = pixels.size() / from;
  const std::size_t to = convert(pixels.data()).size();
  const auto replace = [&](std::size_t i) {
    const auto value = convert(pixels.data() + i * from);
    std::copy(value.begin(), value.end(), pixels.data() + i * to);
  };
  if (to <= from) {
    for (std::size_t i = 0; i < count; ++i) replace(i);
    pixels.resize(count * to);
  } else {
    pixels.resize(count * to);
    for (std::size_t i = count; i-- > 0;) replace(i);
  }
}

void narrow(std::vector<std::uint8_t>& samples, std::array<int, 2> range) {
  const auto [low, high] = range;
  const bool high_byte = range == DecodeOptions{}.range16;
  const std::size_t count = samples.size() / 2;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t wide;
    std::memcpy(&wide, samples.data() + 2 * i, 2);
    const int value = std::clamp<int>(wide, low, high) - low;
    samples[i] = static_cast<std::uint8_t>(high_byte ? value >> 8 : (value * 255 + (high - low) / 2) / (high - low));
  }
  samples.resize(count);
}

void convert(Image& image, Colour colour, int wanted) {
  const auto from = static_cast<std::size_t>(image.channels);
  const auto to_wanted = [&](auto rgb_of) {
    if (wanted == 3) {
      replace_pixels(image.pixels, from, rgb_of);
    } else {
      replace_pixels(image.pixels, from, [&](const std::uint8_t* pixel) { return luma(rgb_of(pixel)); });
    }
  };
  if (colour == Colour::grey) {
    to_wanted(rgb_of_grey);  // whose luma is the grey itself
  } else if (colour == Colour::rgb) {
    to_wanted(rgb_of_rgb);
  } else {
    to_wanted(rgb_of_inverted_cmyk);
  }
  image.channels = wanted;
}

}  // namespace

void prepare(Image& into, const Layout& layout, const DecodeOptions& options) {
  check_size(layout.width, layout.height, options.max_pixels);
  const bool convertible = layout.colour != Colour::unknown && (options.channels == 1 || options.channels == 3);
  if (options.channels != layout.channels && !convertible) {
    throw core::InputError(fmt::format("The image has {} samples a pixel{}, but {} channels are wanted.",
                                       layout.channels, layout.colour == Colour::unknown ? " of no known colour" : "",
                                       options.channels));
  }
  const std::int64_t pixels = layout.width * layout.height;
  const std::int64_t bytes = pixels * layout.channels * (layout.bits / 8);
  if (bytes > 3 * options.max_pixels) {
    throw core::InputError(
        fmt::format("The image is too large: {} x {} x {} samples of {} bits, at most {} bytes are "
                    "decoded.",
                    layout.width, layout.height, layout.channels, layout.bits, 3 * options.max_pixels));
  }
  const auto needed = static_cast<std::size_t>(std::max(bytes, pixels * options.channels));
  const std::size_t held = into.pixels.capacity();
  if (held < needed || (held > kKept && needed < held / 4)) {
    std::vector<std::uint8_t>().swap(into.pixels);  // nothing of the old image is worth copying
    into.pixels.reserve(needed);
  }
  into.pixels.resize(static_cast<std::size_t>(bytes));
  into.width = static_cast<int>(layout.width);
  into.height = static_cast<int>(layout.height);
  into.channels = layout.channels;
}

void finish(Image& into, const Layout& layout, const DecodeOptions& options) {
  if (layout.bits == 16) narrow(into.pixels, options.range16);
  if (layout.channels != options.channels) convert(into, layout.colour, options.channels);
}

}  // namespace allosaur::io::codec
