#include "io/disk_file.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <tuple>
#include <utility>

namespace allosaur::io {

DiskFile::DiskFile(int descriptor, std::shared_ptr<int> error) noexcept
    : descriptor_(descriptor), error_(std::move(error)) {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) return;
  device_ = status.st_dev;
  inode_ = status.st_ino;
  size_ = static_cast<std::uint64_t>(status.st_size);
}

DiskFile::~DiskFile() {
  if (::close(descriptor_) != 0 && *error_ == 0) *error_ = errno;  // where a network file system reports a full disk
}

bool DiskFile::read(std::uint64_t offset, std::span<std::byte> out) const noexcept {
  while (!out.empty()) {
    const ssize_t n = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno != EINTR) return false;
    if (n == 0) break;
    if (n > 0) {
      out = out.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
  }
  std::fill(out.begin(), out.end(), std::byte{0});
  return true;
}

void DiskFile::write(std::uint64_t offset, std::span<const std::byte> bytes) noexcept {
  size_ = std::max(size_, offset + bytes.size());
  while (!bytes.empty() && *error_ == 0) {
    const ssize_t n = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno != EINTR) *error_ = errno;
    if (n > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      offset += static_cast<std::uint64_t>(n);
    }
  }
}

void DiskFile::resize(std::uint64_t size) noexcept {
  if (size == size_) return;
  size_ = size;
  if (*error_ == 0 && ::ftruncate(descriptor_, static_cast<off_t>(size)) != 0) *error_ = errno;
}

int DiskFile::compare(const DiskFile& other) const noexcept {
  const auto mine = std::tie(device_, inode_), theirs = std::tie(other.device_, other.inode_);
  return mine < theirs ? -1 : theirs < mine ? 1 : 0;
}

}  // namespace allosaur::io
