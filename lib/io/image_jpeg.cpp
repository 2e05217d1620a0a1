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

struct Header {
  int width = 0, height = 0, colorspace = -1;
};

Header read_header(const Handle& handle, std::span<const std::byte> bytes) {
  Header header;
  int subsampling = 0;
  const int status = tjDecompressHeader3(handle.get(), codec::data_of(bytes), bytes.size(), &header.width,
                                         &header.height, &subsampling, &header.colorspace);
  // TurboJPEG also refuses chroma subsampling it has no name for, after filling in the rest; decoding can do it.
  if (status != 0 && (header.width < 1 || header.height < 1 || header.colorspace < 0)) fail(handle);
  codec::check_size(header.width, header.height);
  return header;
}

/// Adobe writes the four inks inverted, and readers assume so even without its marker. As Pillow converts.
void convert_inverted_cmyk(std::span<const std::uint8_t> cmyk, std::span<std::uint8_t> rgb) {
  for (std::size_t pixel = 0; pixel < rgb.size() / 3; ++pixel) {
    const std::uint8_t* ink = &cmyk[4 * pixel];
    for (std::size_t c = 0; c < 3; ++c) rgb[3 * pixel + c] = static_cast<std::uint8_t>((ink[c] * ink[3] + 127) / 255);
  }
}

}  // namespace

namespace codec {

ImageInfo probe_jpeg(std::span<const std::byte> bytes) {
  const Header header = read_header(make_decompressor(), bytes);
  return {header.width, header.height, ImageFormat::jpeg};
}

Image decode_jpeg(std::span<const std::byte> bytes) {
  const Handle handle = make_decompressor();
  const Header header = read_header(handle, bytes);
  const bool four_inks = header.colorspace == TJCS_CMYK || header.colorspace == TJCS_YCCK;
  Image decoded = allocate(header.width, header.height, four_inks ? 4 : 3);
  // A warning (data that end early, a bad code) means grey or shifted pixels: the file is rejected. LIMITSCANS refuses
  // progressive files made to take minutes.
  if (tjDecompress2(handle.get(), data_of(bytes), bytes.size(), decoded.pixels.data(), header.width, 0, header.height,
                    four_inks ? TJPF_CMYK : TJPF_RGB, TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS) != 0) {
    fail(handle);
  }
  if (!four_inks) return decoded;
  Image image = allocate(header.width, header.height, 3);
  convert_inverted_cmyk(decoded.pixels, image.pixels);
  return image;
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
