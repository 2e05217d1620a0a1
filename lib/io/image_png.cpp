#include <png.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io {
namespace {

/// libpng reports errors by longjmp: call() is the one frame it jumps to. What runs inside must own nothing that has a
/// destructor, since that would be jumped over.
class Png {
 public:
  Png(const Png&) = delete;
  Png& operator=(const Png&) = delete;

  template <class Body>
  void call(Body&& body) {
    if (setjmp(png_jmpbuf(png_)) != 0) throw core::InputError(fmt::format("The PNG is damaged: {}.", message_.data()));
    body(png_, info_);
  }

 protected:
  Png() = default;
  ~Png() = default;

  static void on_error(png_structp png, png_const_charp text) {
    auto& message = static_cast<Png*>(png_get_error_ptr(png))->message_;
    std::snprintf(message.data(), message.size(), "%s", text);
    png_longjmp(png, 1);
  }
  static void on_warning(png_structp /*png*/, png_const_charp /*text*/) {}  // about chunks beside the pixels

  png_structp png_ = nullptr;
  png_infop info_ = nullptr;

 private:
  std::array<char, 160> message_{};
};

class Reader : public Png {
 public:
  static constexpr std::int64_t kDeflateRatio = 1032;  // 258 equal bytes take two bits

  explicit Reader(std::span<const std::byte> bytes) : Reader(bytes, Unread{}) {
    call([](png_structp png, png_infop info) { png_read_info(png, info); });
    width = png_get_image_width(png_, info_);
    height = png_get_image_height(png_, info_);
    depth = png_get_bit_depth(png_, info_);
    color = png_get_color_type(png_, info_);
    codec::check_claim(width, height, png_get_channels(png_, info_) * depth, bytes.size(), kDeflateRatio);
  }
  ~Reader() { png_destroy_read_struct(&png_, &info_, nullptr); }

  /// After the transformations have been set: all rows into `pixels`, whose rows have `row_bytes` bytes each.
  void read_rows(std::uint8_t* pixels, std::size_t row_bytes) {
    call([](png_structp png, png_infop info) {
      png_set_interlace_handling(png);
      png_read_update_info(png, info);
    });
    if (png_get_rowbytes(png_, info_) != row_bytes) throw std::logic_error("decode_png: unexpected row size");
    std::vector<png_bytep> rows(height);
    for (std::size_t y = 0; y < height; ++y) rows[y] = pixels + y * row_bytes;
    call([&rows](png_structp png, png_infop info) {
      png_read_image(png, rows.data());
      png_read_end(png, info);
    });
  }

  std::uint32_t width = 0, height = 0;
  int depth = 0, color = 0;

 private:
  /// By itself, so that the destructor runs when reading the header throws.
  struct Unread {};
  Reader(std::span<const std::byte> bytes, Unread /*tag*/) : rest_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, static_cast<Png*>(this), on_error, on_warning);
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ == nullptr) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
    png_set_read_fn(png_, this, on_read);
    // Only what pixels are made of: texts and profiles could be inflated to gigabytes.
    png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_NEVER, nullptr, -1);
  }

  static void on_read(png_structp png, png_bytep out, std::size_t size) {
    auto& rest = static_cast<Reader*>(png_get_io_ptr(png))->rest_;
    if (size > rest.size()) png_error(png, "the file ends early");
    std::memcpy(out, rest.data(), size);
    rest = rest.subspan(size);
  }

  std::span<const std::byte> rest_;
};

class Writer : public Png {
 public:
  Writer() {
    png_ = png_create_write_struct(PNG_LIBPNG_VER_STRING, static_cast<Png*>(this), on_error, on_warning);
    if (png_ != nullptr) info_ = png_create_info_struct(png_);
    if (info_ == nullptr) {
      png_destroy_write_struct(&png_, nullptr);
      throw std::bad_alloc();
    }
    png_set_write_fn(png_, this, on_write, [](png_structp) {});
  }
  ~Writer() { png_destroy_write_struct(&png_, &info_); }

  /// Rows of 8-bit samples, or of 16-bit ones in this machine's (little-endian) order.
  std::vector<std::byte> write(const std::uint8_t* pixels, int width, int height, int depth, int channels) {
    const std::size_t row_bytes = static_cast<std::size_t>(width) * static_cast<std::size_t>(channels * depth / 8);
    call([=](png_structp png, png_infop info) {
      png_set_IHDR(png, info, static_cast<png_uint_32>(width), static_cast<png_uint_32>(height), depth,
                   channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                   PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
      png_write_info(png, info);
      if (depth == 16) png_set_swap(png);
      for (int y = 0; y < height; ++y) png_write_row(png, pixels + static_cast<std::size_t>(y) * row_bytes);
      png_write_end(png, info);
    });
    return std::move(bytes_);
  }

 private:
  static void on_write(png_structp png, png_bytep data, std::size_t size) {
    const auto* begin = reinterpret_cast<const std::byte*>(data);
    bool written = true;
    try {
      auto& bytes = static_cast<Writer*>(png_get_io_ptr(png))->bytes_;
      bytes.insert(bytes.end(), begin, begin + size);
    } catch (const std::bad_alloc&) {
      written = false;  // no exception may cross libpng's C frames
    }
    if (!written) png_error(png, "out of memory");
  }

  std::vector<std::byte> bytes_;
};

std::uint32_t big_endian(std::span<const std::byte> bytes, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8 | std::to_integer<std::uint32_t>(bytes[offset + i]);
  return value;
}

}  // namespace

namespace codec {

ImageInfo probe_png(std::span<const std::byte> bytes) {
  // After the signature and the header chunk's length and name.
  constexpr std::size_t kWidth = 16, kHeight = 20, kDepth = 24, kColor = 25, kEnd = 26;
  if (bytes.size() < kEnd) throw core::InputError("The PNG is damaged: the file ends early.");
  const std::int64_t width = big_endian(bytes, kWidth), height = big_endian(bytes, kHeight);
  check_size(width, height);
  ImageInfo info{static_cast<int>(width), static_cast<int>(height), ImageFormat::png};
  const int color = std::to_integer<int>(bytes[kColor]);
  if (color != PNG_COLOR_TYPE_PALETTE) {
    info.channels = ((color & PNG_COLOR_MASK_COLOR) != 0 ? 3 : 1) + ((color & PNG_COLOR_MASK_ALPHA) != 0 ? 1 : 0);
    info.bits = std::to_integer<int>(bytes[kDepth]);
  }
  return info;
}

void decode_png(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  Reader reader(bytes);
  const ImageInfo info = probe_png(bytes);
  const Layout layout{info.width, info.height, info.channels, reader.depth == 16 ? 16 : 8,
                      info.channels < 3 ? Colour::grey : Colour::rgb};
  prepare(into, layout, options);
  reader.call([&reader](png_structp png, png_infop /*info*/) {
    if (reader.color == PNG_COLOR_TYPE_PALETTE) {
      png_set_palette_to_rgb(png);
      png_set_strip_alpha(png);
    }
    if (reader.color == PNG_COLOR_TYPE_GRAY && reader.depth < 8) png_set_expand_gray_1_2_4_to_8(png);
    png_set_swap(png);
  });
  reader.read_rows(into.pixels.data(), into.pixels.size() / reader.height);
  finish(into, layout, options);
}

}  // namespace codec

std::vector<std::uint16_t> decode_grey_png(std::span<const std::byte> bytes, int& width, int& height) {
  Reader reader(bytes);
  if (reader.color != PNG_COLOR_TYPE_GRAY && reader.color != PNG_COLOR_TYPE_PALETTE) {
    throw core::InputError("The PNG has colour channels: a grey or palette image is needed for labels or depth.");
  }
  reader.call([](png_structp png, png_infop /*info*/) {
    png_set_packing(png);
    png_set_swap(png);
  });
  const std::size_t pixels = std::size_t{reader.width} * reader.height;
  std::vector<std::uint16_t> values(pixels);
  if (reader.depth == 16) {
    reader.read_rows(reinterpret_cast<std::uint8_t*>(values.data()), std::size_t{2} * reader.width);
  } else {
    std::vector<std::uint8_t> narrow(pixels);
    reader.read_rows(narrow.data(), reader.width);
    std::copy(narrow.begin(), narrow.end(), values.begin());
  }
  width = static_cast<int>(reader.width);
  height = static_cast<int>(reader.height);
  return values;
}

std::vector<std::byte> encode_png(const Image& image) {
  codec::check_encodable(image);
  return Writer().write(image.pixels.data(), image.width, image.height, 8, image.channels);
}

std::vector<std::byte> encode_grey16_png(std::span<const std::uint16_t> values, int width, int height) {
  if (width < 1 || height < 1 || values.size() != static_cast<std::size_t>(width) * static_cast<std::size_t>(height)) {
    throw std::logic_error("encode_grey16_png: the number of values is not width x height");
  }
  return Writer().write(reinterpret_cast<const std::uint8_t*>(values.data()), width, height, 16, 1);
}

}  // namespace allosaur::io
