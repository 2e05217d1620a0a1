#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/buffer.hpp"

/// Owners of HDF5 handles: the only file that sees hid_t. Knows nothing of MPI. Every error is a core::StorageError
/// naming the file and the object.
namespace allosaur::io::hdf5 {

namespace detail {
using hid = std::int64_t;  // = hid_t of HDF5 1.10
/// Closes on destruction (never throwing); close() is the checked way. Move-only.
template <int (*Close)(hid)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid id) noexcept : id_(id) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      id_ = std::exchange(other.id_, -1);
    }
    return *this;
  }
  ~Handle() { reset(); }
  hid get() const noexcept { return id_; }
  int close() noexcept { return id_ < 0 ? 0 : Close(std::exchange(id_, -1)); }

 private:
  void reset() noexcept {
    if (id_ >= 0) Close(std::exchange(id_, -1));
  }
  hid id_ = -1;
};
int close_file(hid);
int close_group(hid);
int close_dataset(hid);
}  // namespace detail

enum class Access : std::uint8_t { read, create };

class Dataset {
 public:
  std::vector<std::int64_t> shape() const;
  comm::DType dtype() const;
  /// Reads/writes whole rows starting at `first_row`; the buffer's type must be the dataset's.
  void read(comm::Buffer out, std::int64_t first_row = 0) const;
  void write(comm::Buffer rows, std::int64_t first_row = 0);
  /// Byte offset of the data in the file (for pread); throws when they do not lie in one piece or are not written yet.
  std::int64_t file_offset() const;
  /// Checked: on a full disk only this reports the failure. Call it for every dataset written.
  void close();

 private:
  friend class Group;
  detail::Handle<detail::close_dataset> handle_;
  std::string where_;                 // "file:/path", for messages
  std::shared_ptr<int> write_error_;  // errno of the file's first failed write
};

/// One source slice of a virtual dataset: rows [0, rows) of `dataset` in `file` (relative to the index).
struct VirtualSlice {
  std::string file, dataset;
  std::int64_t rows;
};

class Group {
 public:
  bool has(std::string_view name) const;
  std::vector<std::string> names() const;  ///< links in this group, sorted
  Group group(std::string_view name) const;
  Group create_group(std::string_view name);
  Dataset dataset(std::string_view name) const;
  Dataset create_dataset(std::string_view name, comm::DType dtype, std::span<const std::int64_t> shape);
  /// Slices stacked along the first axis, in order.
  void create_virtual_dataset(std::string_view name, comm::DType dtype, std::span<const std::int64_t> shape,
                              std::span<const VirtualSlice> slices);
  std::vector<std::string> strings(std::string_view name) const;  ///< a 1-D dataset of UTF-8 strings of fixed length
  void write_strings(std::string_view name, std::span<const std::string> values);
  /// Slices of strings joined in order; `length`: bytes of the longest string.
  void create_virtual_strings(std::string_view name, std::size_t length, std::span<const VirtualSlice> slices);
  bool has_attribute(std::string_view name) const;
  std::string text_attribute(std::string_view name) const;
  std::int64_t integer_attribute(std::string_view name) const;
  void set_attribute(std::string_view name, std::string_view text);
  void set_attribute(std::string_view name, std::int64_t value);

 private:
  friend class File;
  Dataset create(std::string_view name, std::int64_t type, std::int64_t space, std::int64_t properties);
  detail::Handle<detail::close_group> handle_;
  std::string where_;
  std::shared_ptr<int> write_error_;
};

class File {
 public:
  File(const std::filesystem::path& path, Access access);
  Group root() const;
  /// Checked, after every Dataset's own close(). A dataset or group that is still open would keep the file open, too:
  /// that is a bug and throws std::logic_error.
  void close();

 private:
  detail::Handle<detail::close_file> handle_;
  std::string path_;
  std::shared_ptr<int> write_error_;
};

/// Files, groups and datasets that this process has open: 0 when all owners are gone.
std::int64_t open_objects();

}  // namespace allosaur::io::hdf5
