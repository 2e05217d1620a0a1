#include "data/packed.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/thread_pool.hpp"
#include "io/hdf5.hpp"
#include "io/image.hpp"
#include "io/sharded_array.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBlockBytes = 64LL << 20;
constexpr std::size_t kBlockImages = 4096;

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

/// What one rank has written: its file of bytes, and the table's rows of the images in it.
struct Shard {
  std::int64_t capacity = 0, used = 0;  // bytes of the file's dataset
  std::vector<std::int64_t> row;        // of the images asked for
  std::vector<std::int64_t> begin, length, hash, label;
  std::vector<std::string> key;
  std::vector<Rejected> rejected;

  void add(std::size_t asked, std::int64_t at, const Sample& sample) {
    row.push_back(static_cast<std::int64_t>(asked));
    begin.push_back(at);
    length.push_back(static_cast<std::int64_t>(sample.bytes.size()));
    hash.push_back(static_cast<std::int64_t>(core::hash_bytes(sample.bytes)));
    label.push_back(sample.label);
    key.push_back(sample.key);
  }
};

fs::path byte_file_name(const fs::path& index, int shard) {
  return fmt::format("{}-bytes.{:05}.h5", index.stem().string(), shard);
}

/// Reads and decodes images [first, last) of `indices`; a broken one gives an error text instead of a sample.
struct Block {
  std::vector<Sample> samples;
  std::vector<std::string> errors;
};
Block read_block(const Dataset& dataset, std::span<const std::int64_t> indices, int threads) {
  Block block{std::vector<Sample>(indices.size()), std::vector<std::string>(indices.size())};
  core::parallel_for(threads, static_cast<std::int64_t>(indices.size()), [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    try {
      block.samples[at] = dataset.get(indices[at]);
      io::decode_image(block.samples[at].bytes);
    } catch (const core::InputError& error) {
      block.errors[at] = error.what();
    }
  });
  return block;
}

/// Streams this rank's images into a file of bytes.
Shard write_bytes(const Dataset& dataset, std::span<const std::int64_t> indices, const fs::path& path, int threads,
                  const std::function<void(std::int64_t)>& progress) {
  Shard shard;
  std::vector<std::int64_t> lengths;
  for (const std::int64_t index : indices) shard.capacity += lengths.emplace_back(dataset.length(index));
  io::hdf5::File file(path, io::hdf5::Access::create);
  // A contiguous dataset has its size from the start: that of all images; the place of rejected ones stays unused.
  const std::int64_t shape[] = {shard.capacity};
  io::hdf5::Dataset bytes = file.root().create_dataset("bytes", comm::DType::u8, shape);

  std::vector<std::byte> buffer;
  for (std::size_t first = 0, last = 0; first < indices.size(); first = last) {
    std::int64_t planned = 0;
    while (last < indices.size() && last - first < kBlockImages &&
           (last == first || planned + lengths[last] <= kBlockBytes)) {
      planned += lengths[last++];
    }
    const Block block = read_block(dataset, indices.subspan(first, last - first), threads);
    buffer.clear();
    for (std::size_t i = 0; i < block.samples.size(); ++i) {
      if (!block.errors[i].empty()) {
        shard.rejected.push_back({dataset.key(indices[first + i]), block.errors[i]});
        continue;
      }
      const std::vector<std::byte>& image = block.samples[i].bytes;
      shard.add(first + i, shard.used + static_cast<std::int64_t>(buffer.size()), block.samples[i]);
      buffer.insert(buffer.end(), image.begin(), image.end());
    }
    const auto added = static_cast<std::int64_t>(buffer.size());
    if (shard.used + added > shard.capacity) {
      throw core::InputError(
          fmt::format("Images between {} and {} have grown while they were being packed. Run again when "
                      "nothing writes to them.",
                      dataset.key(indices[first]), dataset.key(indices[last - 1])));
    }
    if (added > 0) bytes.write(std::span<std::byte>(buffer), shard.used);
    shard.used += added;
    progress(static_cast<std::int64_t>(last));
  }
  if (shard.used == 0 && shard.capacity > 0) {
    std::byte zero{};  // HDF5 places the dataset at its first write, and readers want its place
    bytes.write(std::span(&zero, 1));
  }
  bytes.close();
  file.close();
  return shard;
}

/// Reads every image of a written file back.
void verify(const Shard& shard, const fs::path& path, const std::function<void()>& progress) {
  const ByteFile file(path, shard.capacity);
  for (std::size_t i = 0; i < shard.key.size(); ++i) {
    file.read(shard.begin[i], shard.length[i], static_cast<std::uint64_t>(shard.hash[i]), shard.key[i]);
    if (i % kBlockImages == 0) progress();
  }
}

at::Tensor as_tensor(const std::vector<std::int64_t>& values) {
  return at::tensor(values, at::kLong);
}

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
      files_.emplace_back(index.parent_path() / byte_file_name(index, static_cast<int>(i)), value(sizes, i));
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

PackedResult write_packed(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                          const PackedColumns& columns, const fs::path& index, int threads,
                          const std::function<void(std::int64_t)>& progress,
                          const std::function<void(const std::vector<Rejected>&)>& accept) {
  const fs::path path = index.parent_path() / byte_file_name(index, group.rank());
  const fs::path temporary = path.string() + ".tmp";
  Shard shard = comm::coordinate(group, [&] {
    Shard written = write_bytes(dataset, indices, temporary, threads, progress);
    verify(written, temporary, [&] { progress(static_cast<std::int64_t>(indices.size())); });
    core::publish_file(temporary, path);
    return written;
  });
  if (accept) accept(shard.rejected);

  io::ShardedWriter table(group, index);
  comm::coordinate(group, [&] {
    const auto images = static_cast<std::int64_t>(shard.key.size());
    table.write("file_bytes", at::full({1}, shard.capacity, at::kLong));
    table.write("shard", at::full({images}, group.rank(), at::kLong));
    table.write("begin", as_tensor(shard.begin));
    table.write("length", as_tensor(shard.length));
    table.write("hash", as_tensor(shard.hash));
    table.write("label", as_tensor(shard.label));
    table.write_strings("key", shard.key);
    table.write_strings("class_name", group.rank() == 0 ? dataset.class_names() : std::vector<std::string>());
    const at::Tensor rows = as_tensor(shard.row);
    for (const auto& [name, values] : columns.numbers) table.write(name, values.index_select(0, rows));
    for (const auto& [name, values] : columns.strings) {
      std::vector<std::string> chosen;
      for (const std::int64_t row : shard.row) chosen.push_back(values.at(static_cast<std::size_t>(row)));
      table.write_strings(name, chosen);
    }
  });
  table.publish();
  return {static_cast<std::int64_t>(shard.key.size()), shard.used, std::move(shard.rejected)};
}

std::shared_ptr<const Dataset> open_packed(comm::Communicator& group, const fs::path& index, bool labelled) {
  return comm::coordinate(group, [&] { return std::make_shared<const PackedImages>(index, labelled); });
}

}  // namespace allosaur::data
