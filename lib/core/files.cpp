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

void rename_durably(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  if (error) fail("Renaming to", to, error.value());
  Descriptor(to.has_parent_path() ? to.parent_path() : fs::path("."), O_RDONLY | O_DIRECTORY).sync();
}

}  // namespace

std::string read_text(const fs::path& file) {
  errno = 0;
  std::ifstream stream(file, std::ios::binary);
  if (fs::is_directory(file)) throw InputError(fmt::format("{} is a folder, not a file.", file.string()));
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
  rename_durably(temporary.path(), file);
}

void publish_file(const fs::path& from, const fs::path& to) {
  Descriptor(from, O_RDONLY).sync();
  rename_durably(from, to);
}

TemporaryFile::~TemporaryFile() {
  std::error_code ignored;
  fs::remove(path_, ignored);
}

void make_directory(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) fail("Creating the folder", directory, error.value());
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
    if (errno != EWOULDBLOCK) fail("Locking", file, errno);
    throw UsageError(fmt::format("{} is in use by another run ({}). Wait for it to end, or give another output folder.",
                                 directory.string(), read_text(file)));
  }
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  if (::ftruncate(descriptor.value(), 0) != 0) fail("Emptying", file, errno);
  descriptor.write(fmt::format("host {}, process {}", host.data(), ::getpid()));
  descriptor_ = descriptor.release();
}

DirectoryLock::~DirectoryLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

DirectoryLock::DirectoryLock(DirectoryLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

}  // namespace allosaur::core
