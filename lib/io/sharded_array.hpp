#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::io {

/// A set of arrays split over ranks by rows, on disk: one HDF5 file a rank and a small index `<stem>.h5` with the name,
/// size and hashes of every shard, and virtual datasets that join the slices for other tools. The index appears last
/// and whole: before publish() there is nothing new under its name. Shards are named `<stem>.<generation>.<rank>.h5`;
/// writing an array anew takes the next generation, and the old one goes when the new index is in place.
class ShardedWriter {
 public:
  /// Collective. `index`: path of the index file, ending in `.h5`; its folder exists.
  ShardedWriter(comm::Communicator& group, std::filesystem::path index);
  ~ShardedWriter();
  /// Local. This rank's rows of array `name` (may be 0 rows, but every rank must name the same arrays in the same
  /// order): contiguous CPU tensor [rows, ...]; bool is kept as uint8. What goes wrong here is thrown by publish(), on
  /// all ranks.
  void write(const std::string& name, const at::Tensor& rows);
  void write_strings(const std::string& name, const std::vector<std::string>& rows);
  /// The same value on all ranks; stored in the index.
  void set_attribute(const std::string& name, const std::string& text);
  void set_attribute(const std::string& name, std::int64_t value);
  /// Collective. Closes, reads back against the checksums, renames the shards into place, then publishes the index.
  /// When it fails on any rank it throws on all, nothing of this writer is left on disk, and an older array is as it
  /// was; only when the new index is in its place already and the disk cannot confirm it, both are kept.
  void publish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads a sharded array with any number of ranks. Never through the virtual datasets (HDF5 reads zeros from a missing
/// source without an error): shards are verified against the index (name, size; hash of what is read) and read
/// directly.
class ShardedReader {
 public:
  /// Local. Opens the index and checks that every shard is there with the recorded size; throws core::StorageError
  /// naming the damaged file. A reader may be used by several threads.
  explicit ShardedReader(const std::filesystem::path& index);
  ~ShardedReader();
  ShardedReader(ShardedReader&&) noexcept;

  std::vector<std::string> names() const;                          ///< arrays, strings included
  std::vector<std::int64_t> shape(const std::string& name) const;  ///< of the joined array
  /// Local. Rows [first, first+count) joined over shards; the hash of every shard touched is verified at its first use.
  at::Tensor read(const std::string& name, std::int64_t first, std::int64_t count) const;
  at::Tensor read(const std::string& name) const { return read(name, 0, shape(name).at(0)); }
  std::vector<std::string> read_strings(const std::string& name) const;
  std::string text_attribute(const std::string& name) const;
  std::int64_t integer_attribute(const std::string& name) const;
  bool has_attribute(const std::string& name) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace allosaur::io
