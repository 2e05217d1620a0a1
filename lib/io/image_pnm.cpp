#include <cstring>
#include <limits>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io::codec {
namespace {

[[noreturn]] void fail(const char* what) {
  throw core::InputError(fmt::format("The PNM is damaged: {}.", what));
}

/// What a PNM consists of, one after the other: numbers in digits, or bytes.
class Scanner {
 public:
  explicit Scanner(std::span<const std::byte> bytes) : rest_(bytes) {}

  std::int64_t left() const { return std::ssize(rest_); }

  std::uint32_t byte() {
    if (rest_.empty()) fail("the file ends early");
    const auto value = std::to_integer<std::uint32_t>(rest_.front());
    rest_ = rest_.subspan(1);
    return value;
  }
  std::uint32_t two_bytes() {
    const std::uint32_t high = byte();
    return high << 8 | byte();
  }
  std::uint32_t bit() {  // in digits, which need no blank between them
    skip_blanks();
    return digit();
  }
  std::uint32_t number() {
    std::uint32_t value = bit();
    while (is_digit()) {
      value = value * 10 + digit();
      if (value > std::numeric_limits<std::uint32_t>::max() / 20) fail("a number is too large");
    }
    return value;
  }
  void blank() {
    if (!is_blank()) fail("no blank comes after a number of its header");
    byte();
  }

 private:
  char next() const { return rest_.empty() ? '\0' : static_cast<char>(rest_.front()); }
  bool is_digit() const { return next() >= '0' && next() <= '9'; }
  bool is_blank() const { return next() == ' ' || (next() >= '\t' && next() <= '\r'); }
  std::uint32_t digit() {
    if (!is_digit()) fail(rest_.empty() ? "the file ends early" : "something else stands where a number should");
    return byte() - '0';
  }
  void skip_blanks() {
    while (is_blank() || next() == '#') {
      if (byte() != '#') continue;
      while (next() != '\n' && next() != '\r') byte();
    }
  }

  std::span<const std::byte> rest_;
};

/// P1 to P3 have their samples in digits, P4 to P6 in bytes; of each, the first is a bitmap, the second grey, the third
/// RGB.
struct Header {
  bool digits = false, bitmap = false;
  std::uint32_t white = 1;  // the value of a white sample
  Layout layout;
};

Header read_header(Scanner& in) {
  in.byte();
  const std::uint32_t kind = in.byte() - '0';
  Header header;
  header.digits = kind <= 3;
  header.bitmap = kind == 1 || kind == 4;
  const std::int64_t width = in.number(), height = in.number();
  check_size(width, height);
  if (!header.bitmap) header.white = in.number();
  in.blank();
  if (header.white < 1 || header.white > 65535) fail("its white is not between 1 and 65535");
  const int channels = kind == 3 || kind == 6 ? 3 : 1, bits = header.white > 255 ? 16 : 8;
  header.layout = {width, height, channels, bits, channels == 3 ? Colour::rgb : Colour::grey};
  const std::int64_t samples = width * height * channels;
  const std::int64_t least = header.digits ? samples : header.bitmap ? (width + 7) / 8 * height : samples * (bits / 8);
  if (in.left() < least) fail("the file ends early");
  return header;
}

}  // namespace

ImageInfo probe_pnm(std::span<const std::byte> bytes) {
  Scanner in(bytes);
  const auto [digits, bitmap, white, layout] = read_header(in);
  return {static_cast<int>(layout.width), static_cast<int>(layout.height), ImageFormat::pnm, layout.channels,
          bitmap ? 1 : layout.bits};
}

void decode_pnm(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  Scanner in(bytes);
  const auto [digits, bitmap, white, layout] = read_header(in);
  prepare(into, layout, options);
  const std::uint32_t full = layout.bits == 16 ? 65535 : 255;
  std::uint8_t* out = into.pixels.data();
  const auto put = [&, white = white](std::uint32_t sample) {
    if (sample > white) fail("a sample is lighter than white");
    const auto scaled = static_cast<std::uint16_t>(white == full ? sample : (sample * full + white / 2) / white);
    if (full == 255) {
      *out++ = static_cast<std::uint8_t>(scaled);
    } else {
      std::memcpy(out, &scaled, 2);
      out += 2;
    }
  };
  if (bitmap) {  // where 1 is black
    for (std::int64_t y = 0; y < layout.height; ++y) {
      std::uint32_t packed = 0;
      for (std::int64_t x = 0; x < layout.width; ++x) {
        if (!digits && x % 8 == 0) packed = in.byte();
        put(1 - (digits ? in.bit() : packed >> (7 - x % 8) & 1));
      }
    }
  } else {
    for (std::int64_t left = layout.width * layout.height * layout.channels; left > 0; --left) {
      put(digits ? in.number() : full == 255 ? in.byte() : in.two_bytes());
    }
  }
  finish(into, layout, options);
}

}  // namespace allosaur::io::codec
