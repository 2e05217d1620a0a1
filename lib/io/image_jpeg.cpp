#include <turbojpeg.h>

#include <memory>
#include <new>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io {
namespace {

struct Destroy {
  void operator()(void* handle) const noexcept { tjDestroy(handle); }
};
using Handle = std::unique_ptr<void, Destroy>;

/// Made anew for each image (in a tenth of a microsecond): after a damaged header TurboJPEG would go on in the state it
/// left.
Handle make_decompressor() {
  Handle handle(tjInitDecompress());
  if (!handle) throw std::bad_alloc();
  return handle;
}

[[noreturn]] void fail(const Handle& handle) {
  throw core::InputError(fmt::format("The JPEG is damaged: {}.", tjGetErrorStr2(handle.get())));
}

/// A block of 8 x 8 pixels takes a bit at least (Huffman codes have no shorter one).
constexpr std::int64_t kPixelsPerByte = 512;

ImageInfo read_header(const Handle& handle, std::span<const std::byte> bytes) {
  ImageInfo info;
  int subsampling = 0, colorspace = -1;
  const int status = tjDecompressHeader3(handle.get(), codec::data_of(bytes), bytes.size(), &info.width, &info.height,
                                         &subsampling, &colorspace);
  // TurboJPEG also refuses chroma subsampling it has no name for, after filling in the rest; decoding can do it.
  if (status != 0 && (info.width < 1 || info.height < 1 || colorspace < 0)) fail(handle);
  codec::check_claim(info.width, info.height, 8, bytes.size(), kPixelsPerByte);
  info.channels = colorspace == TJCS_GRAY ? 1 : colorspace == TJCS_CMYK || colorspace == TJCS_YCCK ? 4 : 3;
  return info;
}

}  // namespace

namespace codec {

ImageInfo probe_jpeg(std::span<const std::byte> bytes) {
  return read_header(make_decompressor(), bytes);
}

void decode_jpeg(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  const Handle handle = make_decompressor();
  const ImageInfo info = read_header(handle, bytes);
  check_size(info.width, info.height, options.max_pixels);
  const tjscalingfactor scale{1, options.denominator};
  Layout layout{TJSCALED(info.width, scale), TJSCALED(info.height, scale), info.channels, 8, Colour::rgb};
  int format = TJPF_RGB;
  if (info.channels == 1) {
    layout.colour = Colour::grey;
    format = TJPF_GRAY;
  } else if (info.channels == 4) {  // Adobe writes the inks inverted, and readers assume so even without its marker
    layout.colour = Colour::inverted_cmyk;
    format = TJPF_CMYK;
  }
  prepare(into, layout, options);
  // A warning (data that end early, a bad code) means grey or shifted pixels: the file is rejected. LIMITSCANS refuses
  // progressive files made to take minutes.
  if (tjDecompress2(handle.get(), data_of(bytes), bytes.size(), into.pixels.data(), into.width, 0, into.height, format,
                    TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS) != 0) {
    fail(handle);
  }
  finish(into, layout, options);
}

}  // namespace codec

std::vector<std::byte> encode_jpeg(const Image& image, int quality) {
  codec::check_encodable(image);
  const Handle handle(tjInitCompress());
  if (!handle) throw std::bad_alloc();
  const bool grey = image.channels == 1;
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  const int status =
      tjCompress2(handle.get(), image.pixels.data(), image.width, 0, image.height, grey ? TJPF_GRAY : TJPF_RGB, &buffer,
                  &size, grey ? TJSAMP_GRAY : TJSAMP_420, quality, 0);
  const std::unique_ptr<unsigned char, void (*)(unsigned char*)> owner(buffer, tjFree);
  if (status != 0) {
    throw core::InputError(fmt::format("A {} x {} image cannot be written as JPEG of quality {}: {}.", image.width,
                                       image.height, quality, tjGetErrorStr2(handle.get())));
  }
  const auto* begin = reinterpret_cast<const std::byte*>(buffer);
  return {begin, begin + size};
}

}  // namespace allosaur::io
