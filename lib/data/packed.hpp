#pragma once
#include <cstdint>
#include <filesystem>

/// Packed images: `<stem>.h5`, the index of a sharded array (io/sharded_array.hpp) with one row an image, and beside it
/// its parts, files of consecutive images, `<stem>-bytes.NNNNN.h5`, whose dataset `bytes` is contiguous: its place in
/// the file is looked up once, images are then read with pread, past HDF5 and its library lock. Columns of the table:
///   shard i64 (the part's number), begin i64, length i64, hash i64 (XXH3-64 of the image's bytes), label i64 (-1 =
///   none), key (string), and whatever its writer adds (provenance). `file_bytes` (i64) has one row a part,
///   `class_name` (string) one row a class.
/// They are written by write_packed() (data/packed_writer.hpp).
namespace allosaur::data {

inline constexpr const char* kPackedIndexName = "images.h5";  ///< how open_dataset() finds packed images in a folder

/// Where part `number` of the packed images with this index lies.
std::filesystem::path packed_part_file(const std::filesystem::path& index, std::int64_t number);

}  // namespace allosaur::data
