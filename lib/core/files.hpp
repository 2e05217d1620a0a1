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

/// Makes the finished temporary `from` durable under the name `to` (same folder): fsync, rename, fsync of the folder.
void publish_file(const std::filesystem::path& from, const std::filesystem::path& to);

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

/// Creates a folder and its parents; throws StorageError with the reason.
void make_directory(const std::filesystem::path& directory);

/// XXH3-64 of some bytes (pieces: chain through `seed`); hash_hex gives 16 lower-case digits.
std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t seed = 0);
std::uint64_t hash_text(std::string_view text, std::uint64_t seed = 0);
std::string hash_hex(std::uint64_t hash);

/// An exclusive lock held by a process on a run directory (`lock`, with host and pid inside; flock, so it ends with the
/// process). The constructor throws UsageError naming the holder when another process has it.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::filesystem::path& directory);
  ~DirectoryLock();
  DirectoryLock(DirectoryLock&& other) noexcept;
  DirectoryLock& operator=(DirectoryLock&&) = delete;

 private:
  int descriptor_;
};

}  // namespace allosaur::core
