#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io::codec {
namespace {

constexpr std::size_t kFileHeader = 14;  // magic number, file size, offset of the pixels

std::uint32_t little_endian(std::span<const std::byte> bytes, std::size_t offset, std::size_t size) {
  std::uint32_t value = 0;
  for (std::size_t i = size; i-- > 0;) value = value << 8 | std::to_integer<std::uint32_t>(bytes[offset + i]);
  return value;
}

struct Header {
  std::int64_t width = 0, height = 0;
  bool top_down = false;
  std::int64_t bits = 0, row_bytes = 0;  // of a pixel; of a row with its padding
  std::span<const std::byte> rows;
  std::span<const std::byte> palette;
  std::size_t palette_entry = 0;
};

Header read_header(std::span<const std::byte> bytes) {
  const auto need = [&](std::size_t size) {
    if (bytes.size() < size) throw core::InputError("The BMP is damaged: the file ends early.");
  };
  const auto at = [&](std::size_t offset, std::size_t size) { return little_endian(bytes, offset, size); };
  need(kFileHeader + 4);
  const std::size_t header_size = at(kFileHeader, 4);
  const bool old = header_size == 12;
  if (!old && header_size < 40) {
    throw core::InputError(fmt::format("The BMP has a header of {} bytes, of an unknown kind.", header_size));
  }
  need(kFileHeader + header_size);
  Header header;
  std::uint32_t compression = 0;
  std::size_t colours = 0;
  if (old) {
    header.width = at(18, 2);
    header.height = at(20, 2);
    header.bits = at(24, 2);
  } else {
    header.width = static_cast<std::int32_t>(at(18, 4));
    header.height = static_cast<std::int32_t>(at(22, 4));
    header.bits = at(28, 2);
    compression = at(30, 4);
    colours = at(46, 4);
    header.top_down = header.height < 0;
    if (header.top_down) header.height = -header.height;
  }
  check_size(header.width, header.height);

  // Compression 3 names the bits of each colour: as they lie without it, or not read.
  constexpr std::uint32_t kMasks = 3;
  const std::size_t masks = kFileHeader + 40;
  if (compression == kMasks) need(masks + 12);
  const bool plain = compression == 0 || (compression == kMasks && header.bits == 32 && at(masks, 4) == 0xFF0000 &&
                                          at(masks + 4, 4) == 0xFF00 && at(masks + 8, 4) == 0xFF);
  const bool indexed = header.bits == 1 || header.bits == 4 || header.bits == 8;
  if (!plain || (!indexed && header.bits != 24 && header.bits != 32)) {
    throw core::InputError(
        fmt::format("The BMP has {} bits a pixel in encoding {}: only plain ones of 1, 4, 8, 24 and 32 bits are read.",
                    header.bits, compression));
  }
  if (indexed) {
    const std::size_t most = std::size_t{1} << header.bits;
    if (colours == 0) colours = most;
    if (colours > most) throw core::InputError(fmt::format("The BMP is damaged: a palette of {} colours.", colours));
    header.palette_entry = old ? 3 : 4;
    need(kFileHeader + header_size + colours * header.palette_entry);
    header.palette = bytes.subspan(kFileHeader + header_size, colours * header.palette_entry);
  }
  header.row_bytes = (header.width * header.bits + 31) / 32 * 4;
  const std::size_t begin = at(10, 4);
  const auto size =
      static_cast<std::size_t>((header.height - 1) * header.row_bytes + (header.width * header.bits + 7) / 8);
  need(begin + size);
  header.rows = bytes.subspan(begin, size);
  return header;
}

void copy_bgr(const std::byte* bgr, std::uint8_t* rgb) {
  for (int c = 0; c < 3; ++c) rgb[c] = std::to_integer<std::uint8_t>(bgr[2 - c]);
}

void read_row(const Header& header, const std::byte* row, std::uint8_t* rgb) {
  for (std::int64_t x = 0; x < header.width; ++x, rgb += 3) {
    const std::int64_t bit = x * header.bits;
    if (header.palette.empty()) {
      copy_bgr(row + bit / 8, rgb);
      continue;
    }
    const auto low_bits = static_cast<int>(8 - header.bits - bit % 8);  // the leftmost pixel has the highest bits
    const auto index =
        static_cast<std::size_t>(std::to_integer<int>(row[bit / 8]) >> low_bits & ((1 << header.bits) - 1));
    if (index * header.palette_entry >= header.palette.size()) {
      throw core::InputError(
          fmt::format("The BMP is damaged: a pixel has colour {}, past the end of the palette.", index));
    }
    copy_bgr(header.palette.data() + index * header.palette_entry, rgb);
  }
}

}  // namespace

ImageInfo probe_bmp(std::span<const std::byte> bytes) {
  const Header header = read_header(bytes);
  return {static_cast<int>(header.width), static_cast<int>(header.height), ImageFormat::bmp};
}

void decode_bmp(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  const Header header = read_header(bytes);
  const Layout layout{header.width, header.height, 3, 8, Colour::rgb};
  prepare(into, layout, options);
  for (std::int64_t y = 0; y < header.height; ++y) {
    const std::int64_t stored = header.top_down ? y : header.height - 1 - y;
    read_row(header, header.rows.data() + stored * header.row_bytes, into.pixels.data() + y * header.width * 3);
  }
  finish(into, layout, options);
}

}  // namespace allosaur::io::codec
