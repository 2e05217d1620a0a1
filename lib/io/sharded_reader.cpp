#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "io/sharded_array.hpp"
#include "io/sharded_format.hpp"

namespace allosaur::io {

namespace fs = std::filesystem;

struct ShardedReader::Impl {
  fs::path index;
  sharded::Manifest manifest;
  std::mutex mutex{};                              // of what follows
  std::vector<std::optional<hdf5::File>> files{};  // opened at first use
  std::vector<std::vector<bool>> verified{};       // [array][shard]

  fs::path path_of(std::size_t shard) const { return index.parent_path() / manifest.shards[shard].file; }

  void check_sizes() const {
    for (std::size_t s = 0; s < manifest.shards.size(); ++s) {
      std::error_code error;
      const std::uintmax_t bytes = fs::file_size(path_of(s), error);
      if (error) {
        throw core::StorageError(fmt::format("{}: this part of {} cannot be read: {}.", path_of(s).string(),
                                             index.string(), error.message()));
      }
      if (bytes != static_cast<std::uintmax_t>(manifest.shards[s].bytes)) {
        throw core::StorageError(
            fmt::format("{}: the file has {} bytes where {} records {}: it is damaged or not of this set.",
                        path_of(s).string(), bytes, index.string(), manifest.shards[s].bytes));
      }
    }
  }

  std::size_t find(const std::string& name) const {
    const auto found = std::find_if(manifest.arrays.begin(), manifest.arrays.end(),
                                    [&](const sharded::Array& array) { return array.name == name; });
    if (found == manifest.arrays.end()) {
      throw core::StorageError(fmt::format("{} holds no array '{}'.", index.string(), name));
    }
    return static_cast<std::size_t>(found - manifest.arrays.begin());
  }

  std::int64_t rows(std::size_t array) const {
    std::int64_t total = 0;
    for (const sharded::Shard& shard : manifest.shards) total += shard.slices[array].rows;
    return total;
  }

  hdf5::Group open(std::size_t shard) {
    if (!files[shard]) files[shard].emplace(path_of(shard), hdf5::Access::read);
    return files[shard]->root();
  }

  void check_hash(std::size_t array, std::size_t shard, const std::string& hash) {
    if (hash != manifest.shards[shard].slices[array].xxh3) {
      throw core::StorageError(fmt::format("{}: '{}' does not match its checksum in {}: the file is damaged.",
                                           path_of(shard).string(), manifest.arrays[array].name, index.string()));
    }
    verified[array][shard] = true;
  }

  /// Rows [first, first + count) of one shard to `out`; the first time, the whole slice passes by and is verified.
  void read_slice(std::size_t a, std::size_t s, std::int64_t first, std::int64_t count, std::byte* out) {
    const sharded::Array& array = manifest.arrays[a];
    const hdf5::Group shard = open(s);
    if (verified[a][s]) {
      shard.dataset(array.name).read({out, count * array.row_elements(), array.dtype.value()}, first);
      return;
    }
    const auto copy = [&](std::int64_t piece_first, std::int64_t piece_count, std::span<const std::byte> bytes) {
      const std::int64_t begin = std::max(first, piece_first), end = std::min(first + count, piece_first + piece_count);
      if (begin >= end) return;
      std::memcpy(out + (begin - first) * array.row_bytes(), bytes.data() + (begin - piece_first) * array.row_bytes(),
                  static_cast<std::size_t>((end - begin) * array.row_bytes()));
    };
    check_hash(a, s, sharded::hash_of(array, manifest.shards[s].slices[a].rows, shard, copy));
  }

  std::vector<std::string> read_strings(std::size_t a, std::size_t s) {
    std::vector<std::string> strings = open(s).strings(manifest.arrays[a].name);
    check_hash(a, s, sharded::hash_of(strings));
    return strings;
  }

  template <class Value>
  Value attribute(const std::string& name) const {
    const auto found = manifest.attributes.find(name);
    if (found == manifest.attributes.end() || !std::holds_alternative<Value>(found->second)) {
      throw core::StorageError(fmt::format("{} holds no {} attribute '{}'.", index.string(),
                                           std::is_same_v<Value, std::string> ? "text" : "integer", name));
    }
    return std::get<Value>(found->second);
  }
};

ShardedReader::ShardedReader(const std::filesystem::path& index) : impl_(new Impl{index, sharded::read_index(index)}) {
  impl_->check_sizes();
  impl_->files.resize(impl_->manifest.shards.size());
  impl_->verified.assign(impl_->manifest.arrays.size(), std::vector<bool>(impl_->manifest.shards.size(), false));
}

ShardedReader::~ShardedReader() = default;
ShardedReader::ShardedReader(ShardedReader&&) noexcept = default;

std::vector<std::string> ShardedReader::names() const {
  std::vector<std::string> names;
  for (const sharded::Array& array : impl_->manifest.arrays) names.push_back(array.name);
  return names;
}

std::vector<std::int64_t> ShardedReader::shape(const std::string& name) const {
  const std::size_t array = impl_->find(name);
  std::vector<std::int64_t> shape{impl_->rows(array)};
  const auto& row = impl_->manifest.arrays[array].row_shape;
  shape.insert(shape.end(), row.begin(), row.end());
  return shape;
}

at::Tensor ShardedReader::read(const std::string& name, std::int64_t first, std::int64_t count) const {
  const std::lock_guard lock(impl_->mutex);
  const std::size_t a = impl_->find(name);
  const sharded::Array& array = impl_->manifest.arrays[a];
  if (!array.dtype)
    throw core::StorageError(fmt::format("{}: '{}' holds strings, not numbers.", impl_->index.string(), name));
  std::vector<std::int64_t> shape = this->shape(name);
  if (first < 0 || count < 0 || first > shape[0] - count) {
    throw std::out_of_range(fmt::format("{}: '{}' has {} rows; {} from row {} were asked for", impl_->index.string(),
                                        name, shape[0], count, first));
  }
  shape[0] = count;
  at::Tensor rows = at::empty(shape, comm::scalar_type_of(*array.dtype));
  if (rows.numel() == 0) return rows;
  auto* out = static_cast<std::byte*>(rows.mutable_data_ptr());
  std::int64_t shard_first = 0;  // among the joined rows
  for (std::size_t s = 0; s < impl_->manifest.shards.size(); ++s) {
    const std::int64_t shard_rows = impl_->manifest.shards[s].slices[a].rows;
    const std::int64_t begin = std::max(first, shard_first), end = std::min(first + count, shard_first + shard_rows);
    if (begin < end)
      impl_->read_slice(a, s, begin - shard_first, end - begin, out + (begin - first) * array.row_bytes());
    shard_first += shard_rows;
  }
  return rows;
}

std::vector<std::string> ShardedReader::read_strings(const std::string& name) const {
  const std::lock_guard lock(impl_->mutex);
  const std::size_t array = impl_->find(name);
  if (impl_->manifest.arrays[array].dtype) {
    throw core::StorageError(fmt::format("{}: '{}' holds numbers, not strings.", impl_->index.string(), name));
  }
  std::vector<std::string> joined;
  for (std::size_t s = 0; s < impl_->manifest.shards.size(); ++s) {
    std::vector<std::string> strings = impl_->read_strings(array, s);
    std::move(strings.begin(), strings.end(), std::back_inserter(joined));
  }
  return joined;
}

std::string ShardedReader::text_attribute(const std::string& name) const {
  return impl_->attribute<std::string>(name);
}

std::int64_t ShardedReader::integer_attribute(const std::string& name) const {
  return impl_->attribute<std::int64_t>(name);
}

bool ShardedReader::has_attribute(const std::string& name) const {
  return impl_->manifest.attributes.contains(name);
}

}  // namespace allosaur::io
