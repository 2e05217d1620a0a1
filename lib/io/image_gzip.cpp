#include <zlib.h>

#include <array>
#include <memory>
#include <new>

#include <fmt/format.h>

#include "core/error.hpp"
#include "io/image_codecs.hpp"

namespace allosaur::io::codec {
namespace {

constexpr std::size_t kLimit = 256U << 20;

std::vector<std::byte> gunzip(std::span<const std::byte> bytes) {
  constexpr int kGzipOnly = 16 + MAX_WBITS;
  z_stream stream{};
  if (inflateInit2(&stream, kGzipOnly) != Z_OK) throw std::bad_alloc();
  const std::unique_ptr<z_stream, int (*)(z_stream*)> owner(&stream, inflateEnd);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  std::vector<std::byte> content;
  std::array<std::byte, 1U << 16> block;
  int status = Z_OK;
  while (status == Z_OK) {
    stream.next_out = reinterpret_cast<Bytef*>(block.data());
    stream.avail_out = block.size();
    status = inflate(&stream, Z_NO_FLUSH);
    content.insert(content.end(), block.begin(), block.end() - stream.avail_out);
    if (content.size() > kLimit)
      throw core::InputError(fmt::format("The gzip file unpacks to more than {} bytes.", kLimit));
  }
  if (status != Z_STREAM_END) throw core::InputError("The gzip stream is damaged.");
  if (content.size() > 1 && content[0] == std::byte{0x1F} && content[1] == std::byte{0x8B})
    throw core::InputError("The gzip file holds another one.");
  return content;
}

}  // namespace

ImageInfo probe_gzip(std::span<const std::byte> bytes) {
  return probe_image(gunzip(bytes));
}

void decode_gzip(std::span<const std::byte> bytes, const DecodeOptions& options, Image& into) {
  decode_image(gunzip(bytes), options, into);
}

}  // namespace allosaur::io::codec
