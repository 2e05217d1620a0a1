#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"

/// Writing packed images (data/packed.hpp), part by part, so that what is finished survives.
namespace allosaur::data {

/// Columns of a table, all with the same number of rows.
struct PackedColumns {
  std::vector<std::pair<std::string, std::vector<std::string>>> strings;
  std::vector<std::pair<std::string, at::Tensor>> numbers;  // 1-D, contiguous, CPU
};

struct PackConfig {
  int threads = 1;
  /// A part ends where its images fill this many bytes; an image counts as part_bytes / part_images at least.
  std::int64_t part_bytes = 1'000'000'000, part_images = 100'000;
  /// Where there would be fewer parts, both are halved until there are as many, six times at most: for the ranks to
  /// share, whatever their number, and to lose little when they are interrupted.
  std::int64_t wanted_parts = 256;
};

/// What the caller of write_packed() is told and asked. All but `accept` are local and on the caller's thread.
struct PackHooks {
  std::function<void()> alive = [] {};  ///< after each block of work of whatever kind
  /// `done` of this rank's `total` images; first with those that an earlier call has packed.
  std::function<void(std::int64_t done, std::int64_t total)> progress = [](std::int64_t, std::int64_t) {};
  std::function<bool()> stop = [] { return false; };  ///< whether to stop; once true, always true
  /// Collective. Shown this rank's broken images when all parts are finished; when it throws, no index appears.
  std::function<void(const std::vector<Rejected>&)> accept = [](const std::vector<Rejected>&) {};
};

/// Parts of some images, over all ranks.
struct PackPlan {
  std::int64_t parts = 0, images = 0, bytes = 0;  ///< broken images included
};

/// What write_packed() has done, over all ranks.
struct PackedResult {
  bool complete = false;                                 ///< false: stopped on request, and there is no index
  std::int64_t images = 0, bytes = 0;                    ///< in the finished parts
  std::int64_t parts = 0, finished = 0, taken_over = 0;  ///< planned; finished; of these, by an earlier call
};

/// Collective. What write_packed() would write. Cost a rank: the lengths of its images, six reductions of 8 bytes.
PackPlan plan_packed(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                     const PackConfig& config, const PackHooks& hooks = {});

/// Collective. Writes the images `indices` (this rank's) of `dataset`, with the writer's `columns` (one row for each of
/// `indices`), as packed images with the index `index` (its folder exists), in rank order. What is written does not
/// depend on how the images are spread over ranks: they are cut into parts in their order, and part p is written by
/// rank p mod W. Every image is decoded once, on `threads` threads, to keep broken ones out.
///
/// A part appears when it is on disk and has been read back. One that an earlier call has finished is taken over when
/// keys, labels, lengths and columns of its images are still the same, its table is whole, and the images that were
/// broken still are; else it is written anew. (Its images are not read again: their hashes are checked where they are
/// used.) Asked to stop on any rank, that rank gives up the part it is writing at its next block, the others finish
/// theirs, and all return. The index appears last; an earlier one of this name goes first, and so do, at the end, parts
/// that this set does not have. Throws core::StorageError, and core::InputError when an image grows meanwhile.
///
/// Cost a rank, for n images of N over W ranks: 24 n bytes and their columns sent and received, one agreement after
/// every part, and the tables of N/W images, read from the parts, written to the index; n rows and N/W rows of the
/// table in memory, and about 64 MiB of images, twice.
PackedResult write_packed(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                          const PackedColumns& columns, const std::filesystem::path& index, const PackConfig& config,
                          const PackHooks& hooks = {});

}  // namespace allosaur::data
