#include <tiffio.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io {
namespace {

/// The codecs a file may choose, each with the best it can do; libtiff knows more, for fax and film, less well kept.
std::int64_t best_ratio(int compression) {
  switch (compression) {
    case COMPRESSION_NONE:
      return 1;
    case COMPRESSION_PACKBITS:
      return 64;
    case COMPRESSION_LZW:
      return 1400;
    case COMPRESSION_DEFLATE:
    case COMPRESSION_ADOBE_DEFLATE:
      return 1032;
    case COMPRESSION_JPEG:
      return 3 * 512;
    case COMPRESSION_ZSTD:
      return 32768;
    default:
      throw core::InputError(fmt::format(
          "The TIFF has compression {}: only none, PackBits, LZW, deflate, JPEG and Zstandard are read.", compression));
  }
}

/// An open file in memory, at its first page. What libtiff has to say is kept for the error, never printed.
class Tiff {
 public:
  explicit Tiff(std::span<const std::byte> bytes) : bytes_(bytes) {
    const std::unique_ptr<TIFFOpenOptions, void (*)(TIFFOpenOptions*)> options(TIFFOpenOptionsAlloc(),
                                                                               TIFFOpenOptionsFree);
    if (!options) throw std::bad_alloc();
    // Besides tables libtiff keeps one compressed block, which is part of the file.
    constexpr tmsize_t kTables = 16 << 20;
    TIFFOpenOptionsSetMaxSingleMemAlloc(options.get(), kTables + 2 * std::ssize(bytes));
    TIFFOpenOptionsSetErrorHandlerExtR(options.get(), on_error, this);
    TIFFOpenOptionsSetWarningHandlerExtR(options.get(), on_warning, this);
    handle_.reset(TIFFClientOpenExt("", "rm", this, on_read, on_write, on_seek, on_close, on_size, nullptr, nullptr,
                                    options.get()));
    if (!handle_) fail();
    refuse_further_pages();
    describe();
    // libtiff goes on without a tag that is not there whole, say a palette, and calls the image grey.
    if (cut_off_) throw core::InputError("The TIFF is damaged: the file ends early.");
  }
  Tiff(const Tiff&) = delete;
  Tiff& operator=(const Tiff&) = delete;

  /// All blocks (strips or tiles) into `pixels`, which has the bytes that `layout` needs.
  void read(std::uint8_t* pixels) {
    decoding_ = true;
    const bool tiled = TIFFIsTiled(get()) != 0;
    const std::int64_t columns = tiled ? field<std::uint32_t>(TIFFTAG_TILEWIDTH, 0) : layout.width;
    const std::int64_t rows =
        tiled ? field<std::uint32_t>(TIFFTAG_TILELENGTH, 0)
              : std::min<std::int64_t>(field<std::uint32_t>(TIFFTAG_ROWSPERSTRIP, ~0u), layout.height);
    if (columns < 1 || rows < 1) throw core::InputError("The TIFF is damaged: its tiles or strips have no pixels.");
    // A tile may be larger than its image, but not without bound.
    constexpr std::int64_t kMaxTile = 64 << 20;
    const std::int64_t block_row = columns * (planar_ ? 1 : samples_) * (layout.bits / 8);
    const std::int64_t image_bytes = layout.width * layout.height * samples_ * (layout.bits / 8);
    if (rows > std::max(image_bytes, kMaxTile) / block_row) {
      throw core::InputError(fmt::format("The TIFF has tiles of {} x {} pixels, too large for its {} x {}.", columns,
                                         rows, layout.width, layout.height));
    }
    std::vector<std::uint8_t> block(static_cast<std::size_t>(block_row * rows));
    std::uint32_t number = 0;
    for (int plane = 0; plane < (planar_ ? samples_ : 1); ++plane) {
      for (std::int64_t top = 0; top < layout.height; top += rows) {
        const std::int64_t height = std::min(rows, layout.height - top);
        for (std::int64_t left = 0; left < layout.width; left += columns) {
          const std::int64_t size = block_row * (tiled ? rows : height);
          const tmsize_t got = tiled ? TIFFReadEncodedTile(get(), number++, block.data(), size)
                                     : TIFFReadEncodedStrip(get(), number++, block.data(), size);
          if (got != size || !message_.empty()) fail();
          const std::int64_t width = std::min(columns, layout.width - left);
          for (std::int64_t y = 0; y < height; ++y) {
            place(block.data() + y * block_row, width, plane,
                  pixels + ((top + y) * layout.width + left) * pixel_bytes());
          }
        }
      }
    }
    if (inverted_) {
      for (std::int64_t i = 0; i < layout.width * layout.height * pixel_bytes(); ++i) {
        pixels[i] = static_cast<std::uint8_t>(~pixels[i]);
      }
    }
  }

  codec::Layout layout;

 private:
  struct Close {
    void operator()(TIFF* tiff) const noexcept { TIFFClose(tiff); }
  };

  TIFF* get() const { return handle_.get(); }
  std::int64_t pixel_bytes() const { return layout.channels * (layout.bits / 8); }

  [[noreturn]] void fail() const {
    throw core::InputError(
        fmt::format("The TIFF is damaged: {}.", message_.empty() ? "it cannot be decoded" : message_.c_str()));
  }

  template <class T>
  T field(std::uint32_t tag, T otherwise) const {
    T value;
    return TIFFGetField(get(), tag, &value) == 1 ? value : otherwise;
  }

  /// The smaller copies and masks that maps bring along are no pages, as long as they are few.
  void refuse_further_pages() {
    if (TIFFLastDirectory(get()) != 0) return;
    constexpr int kMostCopies = 64;
    for (int copies = 1; TIFFLastDirectory(get()) == 0; ++copies) {
      if (TIFFReadDirectory(get()) == 0) fail();
      const auto kind = field<std::uint32_t>(TIFFTAG_SUBFILETYPE, 0);
      if ((kind & (FILETYPE_REDUCEDIMAGE | FILETYPE_MASK)) == 0 || copies > kMostCopies) {
        throw core::InputError("The TIFF has several pages: write each to a file of its own.");
      }
    }
    if (TIFFSetDirectory(get(), 0) == 0) fail();
  }

  void describe() {
    samples_ = field<std::uint16_t>(TIFFTAG_SAMPLESPERPIXEL, 1);
    layout = {field<std::uint32_t>(TIFFTAG_IMAGEWIDTH, 0), field<std::uint32_t>(TIFFTAG_IMAGELENGTH, 0), samples_,
              field<std::uint16_t>(TIFFTAG_BITSPERSAMPLE, 1), codec::Colour::unknown};
    const int compression = field<std::uint16_t>(TIFFTAG_COMPRESSION, COMPRESSION_NONE);
    const std::int64_t ratio = best_ratio(compression);
    const int format = field<std::uint16_t>(TIFFTAG_SAMPLEFORMAT, SAMPLEFORMAT_UINT);
    if (format != SAMPLEFORMAT_UINT && format != SAMPLEFORMAT_VOID) {
      throw core::InputError(fmt::format("The TIFF has {} samples: only unsigned integers are read.",
                                         format == SAMPLEFORMAT_INT      ? "signed"
                                         : format == SAMPLEFORMAT_IEEEFP ? "floating-point"
                                                                         : "complex"));
    }
    if (layout.bits != 8 && layout.bits != 16) {
      throw core::InputError(fmt::format("The TIFF has samples of {} bits: only 8 and 16 are read.", layout.bits));
    }
    if (samples_ < 1) throw core::InputError("The TIFF is damaged: a pixel has no samples.");
    codec::check_claim(layout.width, layout.height, std::int64_t{samples_} * layout.bits, bytes_.size(), ratio);
    planar_ = samples_ > 1 && field<std::uint16_t>(TIFFTAG_PLANARCONFIG, PLANARCONFIG_CONTIG) == PLANARCONFIG_SEPARATE;
    describe_colour(compression);
  }

  void describe_colour(int compression) {
    const int photometric =
        field<std::uint16_t>(TIFFTAG_PHOTOMETRIC, samples_ < 3 ? PHOTOMETRIC_MINISBLACK : PHOTOMETRIC_RGB);
    if (photometric == PHOTOMETRIC_MINISBLACK) {
      if (samples_ == 1 || (samples_ == 2 && has_alpha())) layout.colour = codec::Colour::grey;
    } else if (photometric == PHOTOMETRIC_MINISWHITE && samples_ == 1) {
      layout.colour = codec::Colour::grey;
      inverted_ = true;
    } else if (photometric == PHOTOMETRIC_RGB && samples_ >= 3) {
      layout.colour = codec::Colour::rgb;
    } else if (photometric == PHOTOMETRIC_SEPARATED && samples_ == 4) {
      layout.colour = codec::Colour::inverted_cmyk;
      inverted_ = true;
    } else if (photometric == PHOTOMETRIC_YCBCR && samples_ == 3 && compression == COMPRESSION_JPEG && !planar_) {
      layout.colour = codec::Colour::rgb;
      if (TIFFSetField(get(), TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB) == 0) fail();
    } else if (photometric == PHOTOMETRIC_PALETTE && samples_ == 1 && layout.bits == 8) {
      layout.colour = codec::Colour::rgb;
      layout.channels = 3;
      if (TIFFGetField(get(), TIFFTAG_COLORMAP, palette_.data(), &palette_[1], &palette_[2]) == 0) fail();
    } else {
      throw core::InputError(
          fmt::format("The TIFF has {} samples a pixel of {} bits and colours of kind {} (its tag "
                      "PhotometricInterpretation), which "
                      "are not read: convert it to grey or RGB.",
                      samples_, layout.bits, photometric));
    }
  }

  bool has_alpha() const {
    std::uint16_t count = 0;
    const std::uint16_t* kinds = nullptr;
    return TIFFGetField(get(), TIFFTAG_EXTRASAMPLES, &count, &kinds) == 1 && count == 1 &&
           kinds[0] != EXTRASAMPLE_UNSPECIFIED;
  }

  /// A row of a block to where it belongs in the image.
  void place(const std::uint8_t* row, std::int64_t width, int plane, std::uint8_t* out) const {
    const auto sample = static_cast<std::size_t>(layout.bits / 8);
    if (palette_[0] != nullptr) {
      for (std::int64_t x = 0; x < width; ++x) {
        for (const std::uint16_t* colour : palette_) *out++ = static_cast<std::uint8_t>(colour[row[x]] >> 8);
      }
    } else if (planar_) {
      out += static_cast<std::size_t>(plane) * sample;
      for (std::int64_t x = 0; x < width; ++x, row += sample, out += pixel_bytes()) std::memcpy(out, row, sample);
    } else {
      std::memcpy(out, row, static_cast<std::size_t>(width * pixel_bytes()));
    }
  }

  /// The first message is the cause of those that follow.
  void keep(const char* format, std::va_list arguments) {
    if (!message_.empty()) return;
    std::array<char, 160> text{};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    message_ = text.data();
    message_.erase(message_.find_last_not_of(" .!\n") + 1);
  }

  static int on_error(TIFF*, void* self, const char*, const char* format, std::va_list arguments) {
    static_cast<Tiff*>(self)->keep(format, arguments);
    return 1;
  }
  /// About tags it says what is harmless, unless the file ends before the tag; about pixels, that some are missing.
  static int on_warning(TIFF*, void* self, const char*, const char* format, std::va_list arguments) {
    auto& tiff = *static_cast<Tiff*>(self);
    const std::string_view text = format;
    tiff.cut_off_ |= text.starts_with("IO error during reading of") || text.starts_with("Out of memory reading of");
    if (tiff.decoding_) tiff.keep(format, arguments);
    return 1;
  }

  static tmsize_t on_read(thandle_t self, void* out, tmsize_t size) {
    auto& tiff = *static_cast<Tiff*>(self);
    const auto wanted = static_cast<std::size_t>(std::max<tmsize_t>(size, 0));
    const auto rest = tiff.bytes_.subspan(std::min(tiff.offset_, tiff.bytes_.size()));
    const auto part = rest.first(std::min(wanted, rest.size()));
    tiff.cut_off_ |= part.size() < wanted;
    std::memcpy(out, part.data(), part.size());
    tiff.offset_ += part.size();
    return std::ssize(part);
  }
  static tmsize_t on_write(thandle_t, void*, tmsize_t) { return -1; }
  static toff_t on_seek(thandle_t self, toff_t offset, int whence) {
    auto& tiff = *static_cast<Tiff*>(self);
    if (whence == SEEK_CUR) offset += tiff.offset_;
    if (whence == SEEK_END) offset += tiff.bytes_.size();
    return tiff.offset_ = offset;
  }
  static int on_close(thandle_t) { return 0; }
  static toff_t on_size(thandle_t self) { return static_cast<Tiff*>(self)->bytes_.size(); }

  std::span<const std::byte> bytes_;
  std::size_t offset_ = 0;
  std::string message_;
  bool cut_off_ = false, decoding_ = false, planar_ = false, inverted_ = false;
  int samples_ = 1;
  std::array<std::uint16_t*, 3> palette_{};  // owned by libtiff
  std::unique_ptr<TIFF, Close> handle_;
};

}  // namespace

namespace codec {

ImageInfo probe_tiff(std::span<const std::byte> bytes) {
  const Layout layout = Tiff(bytes).layout;
  return {static_cast<int>(layout.width), static_cast<int>(layout.height), ImageFormat::tiff, layout.channels,
          layout.bits};
}

void decode_tiff(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  Tiff tiff(bytes);
  prepare(into, tiff.layout, options);
  tiff.read(into.pixels.data());
  finish(into, tiff.layout, options);
}

}  // namespace codec
}  // namespace allosaur::io
