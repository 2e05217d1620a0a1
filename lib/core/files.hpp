#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace allosaur::core {

/// The whole file. Throws InputError naming the file and the reason.
std::string read_text(const std::filesystem::path& file);

/// Writes `text` so that `file` is either the old or the new content, whole, whatever happens: temporary neighbour,
/// fsync, rename, fsync of the folder. Throws StorageError.
void write_atomically(const std::filesystem::path& file, std::string_view text);

/// Makes the finished temporary `from` durable under the name `to` (same folder): replace_file(), sync_directory().
void publish_file(const std::filesystem::path& from, const std::filesystem::path& to);
/// Flushes `from` to disk, then renames it to `to`. When this throws, whatever was at `to` is still there.
void replace_file(const std::filesystem::path& from, const std::filesystem::path& to);
/// Makes the names in a folder durable. Where the file system offers no way to, this does nothing.
void sync_directory(const std::filesystem::path& directory);

/// Flushes a file to disk and has the system forget it, so that what is read next comes from the disk.
void evict_from_cache(const std::filesystem::path& file);

/// The folder that `file` is in: "." for a plain name.
std::filesystem::path folder_of(const std::filesystem::path& file);

std::string host_name();

/// A file under a temporary name: removed at the end of the scope, unless it has been renamed.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::filesystem::path path) : path_(std::move(path)) {}
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

/// Creates a folder and its parents, durably; throws StorageError with the reason.
void make_directory(const std::filesystem::path& directory);

/// XXH3-64 of some bytes (pieces: chain through `seed`); hash_hex gives 16 lower-case digits.
std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t seed = 0);
std::uint64_t hash_text(std::string_view text, std::uint64_t seed = 0);
std::string hash_hex(std::uint64_t hash);

/// An exclusive lock held by a process on a run directory (`lock`, with host and pid inside; flock, so it ends with the
/// process). The constructor throws UsageError naming the holder when another process has it. Some file systems know no
/// locks: there nothing is held.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::filesystem::path& directory);
  ~DirectoryLock();
  DirectoryLock(DirectoryLock&& other) noexcept;
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  bool held() const noexcept { return held_; }

 private:
  int descriptor_;
  bool held_ = true;
};

}  // namespace allosaur::core
