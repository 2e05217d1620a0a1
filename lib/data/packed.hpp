#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"
#include "data/loader.hpp"

/// Packed images: `<stem>.h5`, the index of a sharded array (io/sharded_array.hpp) with one row an image, and beside it
/// one file of encoded images a rank, `<stem>-bytes.NNNNN.h5`, whose dataset `bytes` is contiguous: its place in the
/// file is looked up once, images are then read with pread, past HDF5 and its library lock. Columns of the table:
///   shard i64, begin i64, length i64, hash i64 (XXH3-64 of the image's bytes), label i64 (-1 = none), key (string),
///   and whatever its writer adds (provenance). `class_name` (string) has one row a class.
namespace allosaur::data {

inline constexpr const char* kPackedIndexName = "images.h5";  ///< how open_dataset() finds packed images in a folder

/// Columns that the writer adds to the table: one row for each of this rank's images, in their order.
struct PackedColumns {
  std::vector<std::pair<std::string, std::vector<std::string>>> strings;
  std::vector<std::pair<std::string, at::Tensor>> numbers;  // 1-D
};

/// What write_packed() has done on this rank.
struct PackedResult {
  std::int64_t images = 0, bytes = 0;
  std::vector<Rejected> rejected;  ///< images that could not be read or decoded: left out, with their columns' rows
};

/// Collective. Writes the images `indices` (this rank's) of `dataset` as packed images under the path `index` (its
/// folder exists), in rank order. Every image is decoded once, on `threads` threads, to keep broken ones out; bytes are
/// streamed, with at most about 64 MiB of them in memory. `progress(done)` is called after each block with this rank's
/// count. The index appears last, when every file is on disk and has been read back; where `accept` (collective) throws
/// at what it is shown, this rank's rejected images, none appears. Throws core::StorageError.
PackedResult write_packed(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                          const PackedColumns& columns, const std::filesystem::path& index, int threads,
                          const std::function<void(std::int64_t)>& progress,
                          const std::function<void(const std::vector<Rejected>&)>& accept = {});

/// Collective. Opens packed images by their index. get() verifies every image against its hash and throws
/// core::StorageError naming file and key where it is damaged.
std::shared_ptr<const Dataset> open_packed(comm::Communicator& group, const std::filesystem::path& index,
                                           bool labelled);

}  // namespace allosaur::data
