#include <algorithm>
#include <charconv>
#include <exception>
#include <stdexcept>
#include <system_error>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "io/sharded_array.hpp"
#include "io/sharded_format.hpp"

namespace allosaur::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporary = ".tmp";

fs::path temporary_of(fs::path file) {
  return file += kTemporary;
}

/// Shards are named `<stem>.<generation>.<rank>.h5`, so that writing an array anew leaves the old one whole until the
/// new index is in its place. The generation in the name of a shard (or what is left of one under a temporary name) of
/// `index`.
std::optional<std::int64_t> generation_of(std::string name, const fs::path& index) {
  const std::string stem = index.stem().string() + ".";
  if (name.ends_with(kTemporary)) name.erase(name.size() - kTemporary.size());
  if (!name.starts_with(stem) || !name.ends_with(".h5")) return std::nullopt;
  const char *begin = name.data() + stem.size(), *end = name.data() + name.size() - 3;
  std::int64_t generation = 0, rank = 0;
  const auto [dot, error] = std::from_chars(begin, end, generation);
  if (error != std::errc() || dot == end || *dot != '.') return std::nullopt;
  const auto [rest, rank_error] = std::from_chars(dot + 1, end, rank);
  if (rank_error != std::errc() || rest != end) return std::nullopt;
  return generation;
}

/// Calls body(file, generation) for every shard file of `index` in its folder; gives what kept it from listing them.
template <class Body>
std::error_code for_each_shard(const fs::path& index, Body&& body) {
  std::error_code error;
  fs::directory_iterator files(core::folder_of(index), error);
  for (; !error && files != fs::directory_iterator(); files.increment(error)) {
    if (const auto generation = generation_of(files->path().filename().string(), index))
      body(files->path(), *generation);
  }
  return error;
}

void remove_quietly(const fs::path& file) {
  std::error_code ignored;
  fs::remove(file, ignored);
}

}  // namespace

struct ShardedWriter::Impl {
  comm::Communicator& group;
  fs::path index;
  std::int64_t generation = 0;
  fs::path shard{};
  std::optional<hdf5::File> file{};
  sharded::Manifest manifest{};  // of this rank's shard alone
  std::exception_ptr failure{};  // of a local call: thrown by publish(), on all ranks
  bool published = false;

  ~Impl() { discard(); }

  void open() {
    generation = comm::on_root(group, [&] {
      std::int64_t last = 0;
      const std::error_code error =
          for_each_shard(index, [&](const fs::path&, std::int64_t used) { last = std::max(last, used); });
      if (error) {
        throw core::StorageError(
            fmt::format("{}: cannot list the folder: {}.", core::folder_of(index).string(), error.message()));
      }
      return last + 1;
    });
    const std::string name = fmt::format("{}.{}.{:05}.h5", index.stem().string(), generation, group.rank());
    shard = core::folder_of(index) / name;
    manifest.shards.push_back({name, 0, {}});
    comm::coordinate(group, [&] { file.emplace(temporary_of(shard), hdf5::Access::create); });
  }

  template <class Body>
  void attempt(Body&& body) {
    if (!file) throw std::logic_error(index.string() + ": written to after publish()");
    if (failure) return;
    try {
      body();
    } catch (...) {
      failure = std::current_exception();
    }
  }

  void write(const std::string& name, const at::Tensor& rows) {
    if (rows.dim() == 0 || !rows.is_cpu())
      throw std::logic_error("sharded array '" + name + "': rows on the CPU are needed");
    const comm::Buffer buffer(rows);
    const sharded::Array array{name, buffer.dtype, rows.sizes().slice(1).vec()};
    hdf5::Dataset dataset = file->root().create_dataset(name, buffer.dtype, rows.sizes());
    dataset.write(buffer);
    dataset.close();
    const auto* bytes = static_cast<const std::byte*>(buffer.data);
    record(array, {rows.size(0), sharded::hash_of(array, {bytes, static_cast<std::size_t>(buffer.bytes())}), 0});
  }

  void write_strings(const std::string& name, const std::vector<std::string>& rows) {
    file->root().write_strings(name, rows);
    std::size_t length = 0;
    for (const std::string& row : rows) length = std::max(length, row.size());
    record({name, std::nullopt, {}}, {std::ssize(rows), sharded::hash_of(rows), length});
  }

  void record(const sharded::Array& array, const sharded::Slice& slice) {
    manifest.arrays.push_back(array);
    manifest.shards[0].slices.push_back(slice);
  }

  /// Closes the shard, reads it back and gives it its name; returns what the index has to know of it.
  std::string finish_shard() {
    if (!file) throw std::logic_error(index.string() + ": published twice");
    if (failure) std::rethrow_exception(failure);
    file->close();
    file.reset();
    const fs::path temporary = temporary_of(shard);
    core::evict_from_cache(temporary);
    {
      const hdf5::File written(temporary, hdf5::Access::read);
      for (std::size_t a = 0; a < manifest.arrays.size(); ++a) {
        const sharded::Array& array = manifest.arrays[a];
        const sharded::Slice& slice = manifest.shards[0].slices[a];
        const std::string hash = array.dtype ? sharded::hash_of(array, slice.rows, written.root())
                                             : sharded::hash_of(written.root().strings(array.name));
        if (hash != slice.xxh3) {
          throw core::StorageError(fmt::format("{}: '{}' reads back differently from what was written: check the disk.",
                                               temporary.string(), array.name));
        }
      }
    }
    std::error_code error;
    manifest.shards[0].bytes = static_cast<std::int64_t>(fs::file_size(temporary, error));
    if (error)
      throw core::StorageError(fmt::format("{}: cannot tell its size: {}.", temporary.string(), error.message()));
    core::publish_file(temporary, shard);
    return sharded::to_text(manifest);
  }

  /// On rank 0. The name of the index is not durable yet.
  void place_index(const std::vector<std::string>& records) {
    sharded::Manifest joined = sharded::from_text(records[0], index);
    for (std::size_t rank = 1; rank < records.size(); ++rank) {
      sharded::Manifest other = sharded::from_text(records[rank], index);
      if (other.arrays != joined.arrays) {
        throw std::logic_error(fmt::format("{}: rank {} wrote other arrays than rank 0", index.string(), rank));
      }
      joined.shards.push_back(std::move(other.shards[0]));
    }
    const fs::path temporary = temporary_of(index);
    sharded::write_index(temporary, joined);
    core::evict_from_cache(temporary);
    sharded::read_index(temporary);  // the checksum of the index, before it replaces another
    core::replace_file(temporary, index);
  }

  void discard() {
    if (published || shard.empty()) return;
    file.reset();
    remove_quietly(temporary_of(shard));
    remove_quietly(shard);
    if (group.rank() == 0) remove_quietly(temporary_of(index));
  }
};

ShardedWriter::ShardedWriter(comm::Communicator& group, std::filesystem::path index)
    : impl_(new Impl{group, std::move(index)}) {
  impl_->open();
}

ShardedWriter::~ShardedWriter() = default;

void ShardedWriter::write(const std::string& name, const at::Tensor& rows) {
  impl_->attempt([&] { impl_->write(name, rows); });
}

void ShardedWriter::write_strings(const std::string& name, const std::vector<std::string>& rows) {
  impl_->attempt([&] { impl_->write_strings(name, rows); });
}

void ShardedWriter::set_attribute(const std::string& name, const std::string& text) {
  impl_->manifest.attributes[name] = text;
}

void ShardedWriter::set_attribute(const std::string& name, std::int64_t value) {
  impl_->manifest.attributes[name] = value;
}

void ShardedWriter::publish() {
  Impl& impl = *impl_;
  try {
    const std::string record = comm::coordinate(impl.group, [&] { return impl.finish_shard(); });
    const std::vector<std::string> records = impl.group.gather_all(record);
    comm::coordinate(impl.group, [&] {
      if (impl.group.rank() == 0) impl.place_index(records);
    });
  } catch (...) {
    impl.discard();
    throw;
  }
  impl.published = true;  // whatever comes, the index needs its shards now
  comm::coordinate(impl.group, [&] {
    if (impl.group.rank() != 0) return;
    core::sync_directory(core::folder_of(impl.index));
    std::vector<fs::path> outdated;
    for_each_shard(impl.index, [&](const fs::path& file, std::int64_t generation) {
      if (generation != impl.generation) outdated.push_back(file);
    });
    for (const fs::path& file : outdated) remove_quietly(file);
  });
}

}  // namespace allosaur::io
