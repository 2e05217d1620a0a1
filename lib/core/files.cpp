#include "core/files.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "core/error.hpp"

namespace allosaur::core {

namespace {

namespace fs = std::filesystem;

std::string reason(int error) {
  return std::generic_category().message(error);
}

[[noreturn]] void fail(std::string_view action, const fs::path& file, int error) {
  throw StorageError(fmt::format("{} {} failed: {}.", action, file.string(), reason(error)));
}

/// An open file descriptor.
class Descriptor {
 public:
  Descriptor(const fs::path& file, int flags) : file_(file), value_(::open(file.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) fail("Opening", file, errno);
  }
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  void write(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t written = ::write(value_, text.data(), text.size());
      if (written < 0 && errno != EINTR) fail("Writing", file_, errno);
      if (written > 0) text.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  void sync() const {
    if (::fsync(value_) != 0) fail("Flushing to disk", file_, errno);
  }
  void close() {
    if (::close(std::exchange(value_, -1)) != 0) fail("Closing", file_, errno);
  }
  int release() noexcept { return std::exchange(value_, -1); }
  int value() const noexcept { return value_; }

 private:
  fs::path file_;
  int value_;
};

void move_file(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) fail("Renaming to", to, error.value());
}

}  // namespace

std::string read_text(const fs::path& file) {
  std::error_code unknown;
  if (fs::is_directory(file, unknown)) throw InputError(fmt::format("{} is a folder, not a file.", file.string()));
  errno = 0;
  std::ifstream stream(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) throw InputError(fmt::format("Cannot read {}: {}.", file.string(), reason(errno != 0 ? errno : EIO)));
  return text;
}

void write_atomically(const fs::path& file, std::string_view text) {
  const TemporaryFile temporary(file.string() + ".tmp");
  Descriptor descriptor(temporary.path(), O_WRONLY | O_CREAT | O_TRUNC);
  descriptor.write(text);
  descriptor.sync();
  descriptor.close();
  move_file(temporary.path(), file);
  sync_directory(folder_of(file));
}

void publish_file(const fs::path& from, const fs::path& to) {
  replace_file(from, to);
  sync_directory(folder_of(to));
}

void replace_file(const fs::path& from, const fs::path& to) {
  Descriptor(from, O_RDONLY).sync();
  move_file(from, to);
}

void sync_directory(const fs::path& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0 && errno == EACCES) return;  // one may write to a folder that one cannot read
  if (descriptor < 0) fail("Opening", directory, errno);
  const int error = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  if (error != 0 && error != EINVAL) fail("Flushing to disk", directory, error);
}

void evict_from_cache(const fs::path& file) {
  const Descriptor descriptor(file, O_RDONLY);
  descriptor.sync();
  ::posix_fadvise(descriptor.value(), 0, 0, POSIX_FADV_DONTNEED);
}

fs::path folder_of(const fs::path& file) {
  return file.has_parent_path() ? file.parent_path() : fs::path(".");
}

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

TemporaryFile::~TemporaryFile() {
  std::error_code ignored;
  fs::remove(path_, ignored);
}

void make_directory(const fs::path& directory) {
  std::error_code error;
  std::vector<fs::path> missing;
  for (fs::path part = directory; !part.empty() && !fs::exists(part, error); part = part.parent_path())
    missing.push_back(part);
  fs::create_directories(directory, error);
  if (error) fail("Creating the folder", directory, error.value());
  for (const fs::path& part : missing) sync_directory(folder_of(part));
}

std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

std::uint64_t hash_text(std::string_view text, std::uint64_t seed) {
  return hash_bytes(std::as_bytes(std::span(text)), seed);
}

std::string hash_hex(std::uint64_t hash) {
  return fmt::format("{:016x}", hash);
}

DirectoryLock::DirectoryLock(const fs::path& directory) {
  const fs::path file = directory / "lock";
  Descriptor descriptor(file, O_RDWR | O_CREAT);
  if (::flock(descriptor.value(), LOCK_EX | LOCK_NB) != 0) {
    held_ = errno != ENOSYS && errno != ENOTSUP && errno != ENOLCK;
    if (held_ && errno != EWOULDBLOCK) fail("Locking", file, errno);
    if (held_) {
      throw UsageError(
          fmt::format("{} is in use by another run ({}). Wait for it to end, or give another output folder.",
                      directory.string(), read_text(file)));
    }
  }
  if (::ftruncate(descriptor.value(), 0) != 0) fail("Emptying", file, errno);
  descriptor.write(fmt::format("host {}, process {}", host_name(), ::getpid()));
  descriptor_ = descriptor.release();
}

DirectoryLock::~DirectoryLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

DirectoryLock::DirectoryLock(DirectoryLock&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), held_(other.held_) {}

}  // namespace allosaur::core
