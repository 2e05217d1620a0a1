#include "data/containers.hpp"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <set>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "data/unique.hpp"
#include "io/tar.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kCopied = 8U << 20;  // bytes at a time
constexpr std::size_t kKept = 64U << 20;   // bytes of a buffer that are kept for smaller images

/// Makes room for a file's bytes, and gives back what a much larger one took.
void resize(std::vector<std::byte>& bytes, std::int64_t size) {
  const auto needed = static_cast<std::size_t>(size);
  if (bytes.capacity() > kKept && needed < bytes.capacity() / 4) std::vector<std::byte>().swap(bytes);
  bytes.resize(needed);
}

std::size_t most_open_files() {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<std::size_t>(std::clamp<rlim_t>(limit.rlim_cur / 4, 16, 65536));
}

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

/// Removes what jobs that were killed while they copied have left.
void remove_abandoned(const fs::path& folder) {
  constexpr std::chrono::hours kAbandoned{1};  // a copy under way is written to all the time
  std::error_code error;
  for (fs::directory_iterator files(folder, error); !error && files != fs::directory_iterator();
       files.increment(error)) {
    std::error_code gone;
    const bool old = fs::last_write_time(files->path(), gone) < fs::file_time_type::clock::now() - kAbandoned;
    if (!gone && old && files->path().extension() == ".tmp") fs::remove(files->path(), gone);
  }
}

/// Copies a file with its time, so that `to` appears whole or not at all. Throws fs::filesystem_error.
void copy_file(const fs::path& from, const fs::path& to, const std::function<void()>& alive) {
  const core::TemporaryFile temporary(fmt::format("{}.{}.tmp", to.string(), unique_digits()));
  const auto check = [&](bool good, const fs::path& file) {
    if (good) return;
    const int error = errno;
    throw fs::filesystem_error("copy", file, std::error_code(error != 0 ? error : EIO, std::generic_category()));
  };
  const fs::file_time_type time = fs::last_write_time(from);
  std::vector<char> block(kCopied);
  std::ifstream in(from, std::ios::binary);
  check(in.is_open(), from);
  std::ofstream out(temporary.path(), std::ios::binary);
  while (in) {
    in.read(block.data(), std::ssize(block));
    check(!in.bad(), from);
    check(out.write(block.data(), in.gcount()).good(), to);
    alive();
  }
  out.close();
  check(out.good(), to);
  fs::last_write_time(temporary.path(), time);
  if (!same_size_and_time(from, to)) fs::rename(temporary.path(), to);  // another job may have been faster
}

/// Two sources may hold files of one name, so the folder is part of it.
fs::path staged_name(const fs::path& folder, const fs::path& file) {
  const std::string home = fs::absolute(file).lexically_normal().parent_path().string();
  return folder / core::hash_hex(core::hash_text(home)) / file.filename();
}

}  // namespace

/// A regular file open for reading. Throws std::system_error.
class OpenFile {
 public:
  explicit OpenFile(const fs::path& file) : descriptor_(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) fail();  // a pipe does not make it wait
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) fail();
    is_file_ = S_ISREG(status.st_mode);
    size_ = status.st_size;
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  ~OpenFile() { ::close(descriptor_); }

  bool is_file() const noexcept { return is_file_; }
  std::int64_t size() const noexcept { return size_; }  ///< bytes, when it was opened

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
  bool is_file_ = false;
  std::int64_t size_ = 0;
};

void read_image_file(const fs::path& file, std::vector<std::byte>& bytes) {
  const auto fail = [&](const std::string& reason) {
    throw core::InputError(fmt::format("The image {} cannot be read: {}.", file.string(), reason));
  };
  try {
    const OpenFile open(file);
    if (!open.is_file()) fail("it is not a file");
    if (open.size() > io::kMaxMember)
      fail(fmt::format("it has {} bytes, more than the {} that an image may have", open.size(), io::kMaxMember));
    resize(bytes, open.size());
    bytes.resize(open.read(bytes, 0));
  } catch (const std::system_error& error) {
    fail(error.what());
  }
}

Containers::Containers(std::vector<std::string> files)
    : files_(std::move(files)), most_open_(most_open_files()), open_(files_.size()) {}
Containers::~Containers() = default;

std::shared_ptr<const OpenFile> Containers::open(std::int32_t file) const {
  auto& place = open_.at(static_cast<std::size_t>(file));
  {
    const std::lock_guard lock(mutex_);
    if (place) return place;
  }
  auto opened = std::make_shared<const OpenFile>(files_[static_cast<std::size_t>(file)]);
  std::shared_ptr<const OpenFile> closed;  // without the lock
  const std::lock_guard lock(mutex_);
  if (place) return place;
  place = opened;
  if (order_.size() < most_open_) {
    order_.push_back(file);
  } else {
    const std::int32_t oldest = std::exchange(order_[next_++ % most_open_], file);
    closed = std::exchange(open_[static_cast<std::size_t>(oldest)], nullptr);
  }
  return opened;
}

void Containers::read(std::int32_t file, std::int64_t begin, std::int64_t length, const std::string& key,
                      std::vector<std::byte>& bytes) const {
  if (file < 0 || file >= std::ssize(files_) || begin < 0 || length < 0)
    throw core::InputError(fmt::format("The place that the index records for {} is no place.", key));
  const std::string& name = files_[static_cast<std::size_t>(file)];
  try {
    const auto opened = open(file);
    if (length <= opened->size() && begin <= opened->size() - length) {
      resize(bytes, length);
      if (opened->read(bytes, begin) == bytes.size()) return;
    }
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
    std::set<fs::path> folders;
    for (const std::string& file : staged) folders.insert(fs::path(file).parent_path());
    for (const fs::path& folder : folders) remove_abandoned(folder);
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
      try {
        core::make_directory(fs::path(staged[i]).parent_path());
        copy_file(files[i], staged[i], [&] {
          if (places.progress) places.progress(static_cast<std::int64_t>(i));
        });
      } catch (const fs::filesystem_error& error) {
        throw core::StorageError(
            fmt::format("{} cannot be copied to {}: {}.", files[i], staged[i], error.code().message()));
      }
    }
  });
  return staged;
}

}  // namespace allosaur::data
