#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace allosaur::io {

/// The file below an HDF5 file. HDF5 1.10 does not survive a failing write while it closes a file: the file stays half
/// closed and the process crashes when it ends. So writing never fails here; the first error is kept for who asks, and
/// what would follow is dropped.
class DiskFile {
 public:
  /// Takes over an open descriptor. `error` receives the errno of the first failure to write; it outlives the file.
  DiskFile(int descriptor, std::shared_ptr<int> error) noexcept;
  ~DiskFile();
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  /// Zeros past the end; false (with errno) when the disk fails.
  bool read(std::uint64_t offset, std::span<std::byte> out) const noexcept;
  void write(std::uint64_t offset, std::span<const std::byte> bytes) noexcept;
  void resize(std::uint64_t size) noexcept;
  std::uint64_t size() const noexcept { return size_; }
  /// <0, 0 or >0; 0 for the same file under whatever name.
  int compare(const DiskFile& other) const noexcept;

 private:
  int descriptor_;
  std::shared_ptr<int> error_;
  std::uint64_t device_ = 0, inode_ = 0, size_ = 0;
};

}  // namespace allosaur::io
