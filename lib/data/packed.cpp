#include "data/packed.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "io/hdf5.hpp"
#include "io/sharded_array.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

/// A file of image bytes, open for reading.
class ByteFile {
 public:
  ByteFile(fs::path path, std::int64_t size) : path_(std::move(path)), size_(size) {
    const io::hdf5::File file(path_, io::hdf5::Access::read);
    const io::hdf5::Dataset bytes = file.root().dataset("bytes");
    if (bytes.shape() != std::vector<std::int64_t>{size}) {
      throw core::StorageError(
          fmt::format("{} is damaged: its dataset `bytes` does not have {} bytes.", path_.string(), size));
    }
    if (size > 0) offset_ = bytes.file_offset();
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail(std::strerror(errno));
  }
  ByteFile(ByteFile&& other) noexcept
      : path_(std::move(other.path_)),
        size_(other.size_),
        offset_(other.offset_),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  ByteFile& operator=(ByteFile&&) = delete;
  ~ByteFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  /// The bytes [begin, begin + length) of the dataset; throws core::StorageError when they do not have this hash.
  std::vector<std::byte> read(std::int64_t begin, std::int64_t length, std::uint64_t hash,
                              const std::string& key) const {
    if (begin < 0 || length < 0 || begin > size_ - length) fail("the place recorded for " + key + " lies outside");
    std::vector<std::byte> bytes(static_cast<std::size_t>(length));
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t count = ::pread(descriptor_, bytes.data() + done, bytes.size() - done,
                                    static_cast<off_t>(offset_ + begin) + static_cast<off_t>(done));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail(std::strerror(errno));
      if (count == 0) fail("it ends before " + key);
      done += static_cast<std::size_t>(count);
    }
    if (core::hash_bytes(bytes) != hash) fail("the bytes of " + key + " are not those that were written");
    return bytes;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw core::StorageError(
        fmt::format("The packed images {} cannot be read: {}. Pack them again.", path_.string(), reason));
  }

  fs::path path_;
  std::int64_t size_, offset_ = 0;
  int descriptor_ = -1;
};

class PackedImages final : public Dataset {
 public:
  PackedImages(const fs::path& index, bool labelled) {
    const io::ShardedReader table(index);
    const std::vector<std::string> names = table.names();
    for (const char* name : {"file_bytes", "shard", "begin", "length", "hash", "label", "key", "class_name"}) {
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        throw core::InputError(
            fmt::format("{} does not hold packed images: it has no column `{}`.", index.string(), name));
      }
    }
    shard_ = table.read("shard").contiguous();
    begin_ = table.read("begin").contiguous();
    length_ = table.read("length").contiguous();
    hash_ = table.read("hash").contiguous();
    keys_ = table.read_strings("key");
    if (keys_.empty()) throw core::InputError(fmt::format("The packed images {} hold no image.", index.string()));
    if (labelled) {
      label_ = table.read("label").contiguous();
      class_names_ = table.read_strings("class_name");
      if (class_names_.empty()) {
        throw core::InputError(fmt::format(
            "The packed images {} have no labels. Pack them again with --pack.labelled=true.", index.string()));
      }
    }
    const at::Tensor sizes = table.read("file_bytes").contiguous();
    for (std::int64_t i = 0; i < sizes.size(0); ++i) {
      files_.emplace_back(packed_part_file(index, i), value(sizes, i));
    }
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(keys_.size()); }
  std::int64_t label(std::int64_t index) const override { return label_.defined() ? value(label_, index) : -1; }
  std::string key(std::int64_t index) const override { return keys_.at(static_cast<std::size_t>(index)); }
  std::int64_t length(std::int64_t index) const override { return value(length_, index); }
  const std::vector<std::string>& class_names() const override { return class_names_; }

  Sample get(std::int64_t index) const override {
    Sample sample;
    sample.key = key(index);
    sample.label = label(index);
    sample.bytes = files_.at(static_cast<std::size_t>(value(shard_, index)))
                       .read(value(begin_, index), value(length_, index),
                             static_cast<std::uint64_t>(value(hash_, index)), sample.key);
    return sample;
  }

 private:
  static std::int64_t value(const at::Tensor& column, std::int64_t index) {
    return column.data_ptr<std::int64_t>()[index];
  }

  at::Tensor shard_, begin_, length_, hash_, label_;  // i64 [images]
  std::vector<std::string> keys_, class_names_;
  std::vector<ByteFile> files_;
};

}  // namespace

fs::path packed_part_file(const fs::path& index, std::int64_t number) {
  return index.parent_path() / fmt::format("{}-bytes.{:05}.h5", index.stem().string(), number);
}

std::shared_ptr<const Dataset> open_packed(comm::Communicator& group, const fs::path& index, bool labelled) {
  return comm::coordinate(group, [&] { return std::make_shared<const PackedImages>(index, labelled); });
}

}  // namespace allosaur::data
