#include "data/containers.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kOpenFiles = 256;  // well below the usual limit of 1024 a process

/// Host and folder, which name a disk; and the number of this rank among those that share it.
struct Neighbours {
  int rank = 0, count = 0;
};
Neighbours neighbours_of(comm::Communicator& group) {
  const std::string host = core::host_name();
  const std::vector<std::string> hosts = group.gather_all(host);
  Neighbours result;
  for (std::size_t rank = 0; rank < hosts.size(); ++rank) {
    if (hosts[rank] != host) continue;
    if (static_cast<int>(rank) < group.rank()) ++result.rank;
    ++result.count;
  }
  return result;
}

bool same_size_and_time(const fs::path& a, const fs::path& b) {
  std::error_code error;
  return fs::exists(b, error) && fs::file_size(a, error) == fs::file_size(b, error) &&
         fs::last_write_time(a, error) == fs::last_write_time(b, error) && !error;
}

/// Two sources may hold files of one name, so the folder is part of it.
fs::path staged_name(const fs::path& folder, const fs::path& file) {
  const std::string home = fs::absolute(file).lexically_normal().parent_path().string();
  return folder / core::hash_hex(core::hash_text(home)) / file.filename();
}

}  // namespace

/// A file open for reading. Throws std::system_error.
class OpenFile {
 public:
  explicit OpenFile(const fs::path& file) : descriptor_(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) fail();  // a pipe does not make it wait
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() { ::close(descriptor_); }

  struct stat status() const {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail();
    return status;
  }

  /// Reads up to bytes.size() bytes; gives how many there were.
  std::size_t read(std::span<std::byte> bytes, std::int64_t begin) const {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t count = ::pread(descriptor_, bytes.data() + done, bytes.size() - done,
                                    static_cast<off_t>(begin) + static_cast<off_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail();
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return done;
  }

 private:
  [[noreturn]] static void fail() { throw std::system_error(errno, std::generic_category()); }
  int descriptor_;
};

std::vector<std::byte> read_image_file(const fs::path& file) {
  const auto fail = [&](const char* reason) {
    throw core::InputError(fmt::format("The image {} cannot be read: {}.", file.string(), reason));
  };
  std::vector<std::byte> bytes;
  try {
    const OpenFile open(file);
    const struct stat status = open.status();
    if (!S_ISREG(status.st_mode)) fail("it is not a file");
    bytes.resize(static_cast<std::size_t>(status.st_size));
    bytes.resize(open.read(bytes, 0));
  } catch (const std::system_error& error) {
    fail(error.what());
  }
  return bytes;
}

Containers::Containers(std::vector<std::string> files) : files_(std::move(files)), open_(files_.size()) {}
Containers::~Containers() = default;

std::shared_ptr<const OpenFile> Containers::open(std::int32_t file) const {
  const std::lock_guard lock(mutex_);
  auto& opened = open_.at(static_cast<std::size_t>(file));
  if (opened) return opened;
  opened = std::make_shared<const OpenFile>(files_[static_cast<std::size_t>(file)]);
  if (order_.size() < kOpenFiles) {
    order_.push_back(file);
  } else {
    open_[static_cast<std::size_t>(std::exchange(order_[next_++ % kOpenFiles], file))].reset();
  }
  return opened;
}

std::vector<std::byte> Containers::read(std::int32_t file, std::int64_t begin, std::int64_t length,
                                        const std::string& key) const {
  if (file < 0 || file >= std::ssize(files_) || begin < 0 || length < 0)
    throw core::InputError(fmt::format("The place that the index records for {} is no place.", key));
  std::vector<std::byte> bytes(static_cast<std::size_t>(length));
  const std::string& name = files_[static_cast<std::size_t>(file)];
  try {
    if (open(file)->read(bytes, begin) == bytes.size()) return bytes;
  } catch (const std::system_error& error) {
    throw core::InputError(fmt::format("{} cannot be read from {}: {}.", key, name, error.what()));
  }
  throw core::InputError(fmt::format("{} ends before {}, which is in its index.", name, key));
}

std::vector<std::string> stage(comm::Communicator& group, const std::vector<std::string>& files, const Places& places) {
  const Neighbours neighbours = neighbours_of(group);
  std::vector<std::string> staged;
  for (const std::string& file : files) staged.push_back(staged_name(places.stage, file).string());
  comm::coordinate(group, [&] {
    std::uintmax_t needed = 0;
    for (std::size_t i = 0; i < files.size(); ++i) {
      std::error_code error;
      if (!same_size_and_time(files[i], staged[i])) needed += fs::file_size(files[i], error);
    }
    core::make_directory(places.stage);
    std::error_code error;
    const std::uintmax_t room = fs::space(places.stage, error).available;
    if (!error && needed > room) {
      throw core::StorageError(
          fmt::format("The images need {} bytes in {}, which has room for {}. Name another folder as data.stage, or "
                      "none to read them where they are.",
                      needed, places.stage.string(), room));
    }
  });
  comm::coordinate(group, [&] {
    for (std::size_t i = static_cast<std::size_t>(neighbours.rank); i < files.size();
         i += static_cast<std::size_t>(neighbours.count)) {
      if (same_size_and_time(files[i], staged[i])) continue;
      const core::TemporaryFile temporary(staged[i] + ".tmp");
      try {
        core::make_directory(temporary.path().parent_path());
        fs::copy_file(files[i], temporary.path(), fs::copy_options::overwrite_existing);
        fs::last_write_time(temporary.path(), fs::last_write_time(files[i]));
        fs::rename(temporary.path(), staged[i]);
      } catch (const fs::filesystem_error& error) {
        throw core::StorageError(
            fmt::format("{} cannot be copied to {}: {}.", files[i], staged[i], error.code().message()));
      }
      if (places.progress) places.progress(static_cast<std::int64_t>(i));
    }
  });
  return staged;
}

}  // namespace allosaur::data
