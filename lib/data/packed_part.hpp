#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "data/dataset.hpp"
#include "data/packed_writer.hpp"

/// One part of packed images: a file with their bytes and a table of its own, so that it needs no index to be taken
/// over. Everything here is local.
namespace allosaur::data {

/// What a part is to hold.
struct Part {
  std::filesystem::path file;
  at::Tensor rows, lengths;  // i64 [images]: rows of the data set, and encoded bytes when the part was planned
  PackedColumns columns;     // of the writer
};

/// What a finished part says of itself.
struct PartTable {
  std::int64_t identity = 0;    ///< of the part it was written for
  std::int64_t file_bytes = 0;  ///< size of the dataset `bytes`
  PackedColumns images;         ///< begin, length, hash, label, key; then the writer's columns
  PackedColumns rejected;       ///< row (in Part::rows), key, reason

  std::int64_t image_count() const;
  std::int64_t image_bytes() const;
  void add_rejected_to(std::vector<Rejected>& list) const;
};

/// PartTable::images without rows, for a writer's columns (of which names and types are used).
PackedColumns empty_image_table(const PackedColumns& columns);
/// Rows of `columns` in this order.
PackedColumns select(const PackedColumns& columns, const at::Tensor& rows);

/// Writes the part under a temporary name, reads it back, and gives it its name. None when `hooks` asked to stop: then
/// nothing is left. `progress(images)` is called after each block. Throws core::StorageError, and core::InputError when
/// images have grown since the part was planned.
std::optional<PartTable> write_part(const Dataset& dataset, const Part& part, const PackConfig& config,
                                    const PackHooks& hooks, const std::function<void(std::int64_t)>& progress);

/// The table of a part file; `columns` as in empty_image_table(). Throws core::StorageError when it is not whole.
PartTable read_part_table(const std::filesystem::path& file, const PackedColumns& columns);

/// The table of the part where it has been finished before, for the same images, of which those that could not be
/// decoded still cannot.
std::optional<PartTable> find_part(const Dataset& dataset, const Part& part, const PackConfig& config);

}  // namespace allosaur::data
