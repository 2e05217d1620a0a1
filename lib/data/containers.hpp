#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"

namespace allosaur::data {

class OpenFile;

/// A whole file, into memory that is used again. Throws core::InputError naming it, also when it has more than
/// io::kMaxMember bytes.
void read_image_file(const std::filesystem::path& file, std::vector<std::byte>& bytes);

/// Files of many images, read at any place with pread. At most a quarter of the files that the process may open are
/// open at a time, however many there are. Thread-safe: a file that is slow to open keeps nobody from the others.
class Containers {
 public:
  explicit Containers(std::vector<std::string> files);
  ~Containers();
  /// The bytes [begin, begin + length) of a file, into memory that is used again; throws core::InputError naming it and
  /// `key` when it has not as many.
  void read(std::int32_t file, std::int64_t begin, std::int64_t length, const std::string& key,
            std::vector<std::byte>& bytes) const;

 private:
  std::shared_ptr<const OpenFile> open(std::int32_t file) const;

  std::vector<std::string> files_;
  std::size_t most_open_;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::vector<std::shared_ptr<const OpenFile>> open_;
  mutable std::vector<std::int32_t> order_;  // of opening: a ring
  mutable std::size_t next_ = 0;
};

/// Collective. Copies files to the folder `stage` of each node, shared out over its ranks, and gives their new paths.
/// What is there already, of the same size and time, stays; other jobs may be staging the same files. Throws
/// core::StorageError where the disk has no room, before anything is copied. Cost a node: the bytes of all files.
std::vector<std::string> stage(comm::Communicator& group, const std::vector<std::string>& files, const Places& places);

}  // namespace allosaur::data
