#include "data/packed_part.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "core/files.hpp"
#include "core/thread_pool.hpp"
#include "io/hdf5.hpp"
#include "io/image.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;
namespace hdf5 = io::hdf5;

constexpr std::int64_t kBlockBytes = 64LL << 20;
constexpr std::int64_t kBlockImages = 4096;

/// A hash over many values; the seed names the format of parts.
class Digest {
 public:
  void add(std::span<const std::byte> bytes) { value_ = core::hash_bytes(bytes, value_); }
  void add(const std::string& text) { add(std::as_bytes(std::span(text))); }
  void add(std::int64_t number) { add(std::as_bytes(std::span(&number, 1))); }
  void add(const at::Tensor& numbers) {
    const comm::Buffer buffer(numbers);
    add({static_cast<const std::byte*>(buffer.data), static_cast<std::size_t>(buffer.bytes())});
  }
  void add(const PackedColumns& columns) {
    for (const auto& [name, values] : columns.numbers) {
      add(name);
      add(values);
    }
    for (const auto& [name, values] : columns.strings) {
      add(name);
      for (const std::string& value : values) add(value);
    }
  }
  std::int64_t value() const { return std::bit_cast<std::int64_t>(value_); }

 private:
  std::uint64_t value_ = 1;
};

std::span<const std::int64_t> integers(const at::Tensor& column) {
  return {column.const_data_ptr<std::int64_t>(), static_cast<std::size_t>(column.numel())};
}

std::span<const std::int64_t> integers(const PackedColumns& columns, std::string_view name) {
  const auto found = std::ranges::find(columns.numbers, name, [](const auto& column) { return column.first; });
  return integers(found->second);
}

const std::vector<std::string>& strings(const PackedColumns& columns, std::string_view name) {
  return std::ranges::find(columns.strings, name, [](const auto& column) { return column.first; })->second;
}

at::Tensor no_numbers() {
  return at::empty({0}, at::kLong);
}

PackedColumns empty_rejected_table() {
  return {.strings = {{"key", {}}, {"reason", {}}}, .numbers = {{"row", no_numbers()}}};
}

void save(hdf5::Group group, const PackedColumns& columns) {
  for (const auto& [name, values] : columns.numbers) {
    const comm::Buffer buffer(values);
    hdf5::Dataset dataset = group.create_dataset(name, buffer.dtype, values.sizes());
    dataset.write(buffer);
    dataset.close();
  }
  for (const auto& [name, values] : columns.strings) group.write_strings(name, values);
}

/// Fills columns without rows.
void load(const hdf5::Group& group, PackedColumns& columns) {
  for (auto& [name, values] : columns.numbers) {
    const hdf5::Dataset dataset = group.dataset(name);
    values = at::empty(dataset.shape(), values.options());
    dataset.read(values);
  }
  for (auto& [name, values] : columns.strings) values = group.strings(name);
}

std::int64_t identity_of(const Dataset& dataset, const Part& part) {
  Digest digest;
  for (const std::int64_t row : integers(part.rows)) {
    digest.add(dataset.key(row));
    digest.add(dataset.label(row));
  }
  digest.add(part.lengths);
  digest.add(part.columns);
  return digest.value();
}

std::int64_t hash_of(const PartTable& table) {
  Digest digest;
  digest.add(table.identity);
  digest.add(table.file_bytes);
  digest.add(table.images);
  digest.add(table.rejected);
  return digest.value();
}

/// Images, read and decoded; a broken one has an error text instead of bytes.
struct Block {
  std::vector<Sample> samples;
  std::vector<std::string> errors;
};

Block read_block(const Dataset& dataset, std::span<const std::int64_t> rows, int threads) {
  Block block{std::vector<Sample>(rows.size()), std::vector<std::string>(rows.size())};
  core::parallel_for(threads, std::ssize(rows), [&](std::int64_t i) {
    const auto at = static_cast<std::size_t>(i);
    try {
      block.samples[at] = dataset.get(rows[at]);
      const std::vector<std::byte>& bytes = block.samples[at].bytes;
      io::decode_image(bytes, {.channels = io::probe_image(bytes).channels});
    } catch (const core::InputError& error) {
      block.errors[at] = error.what();
    }
  });
  return block;
}

/// The end of a block that begins with item `first`: as many as fit, one at least.
std::size_t block_end(std::span<const std::int64_t> lengths, std::size_t first) {
  std::size_t last = first;
  std::int64_t bytes = 0;
  while (last < lengths.size() && static_cast<std::int64_t>(last - first) < kBlockImages &&
         (last == first || bytes + lengths[last] <= kBlockBytes)) {
    bytes += lengths[last++];
  }
  return last;
}

/// Streams the images of a part into the dataset `bytes`, and collects the table.
class PartWriter {
 public:
  PartWriter(const Dataset& dataset, const Part& part, hdf5::Group root)
      : dataset_(dataset), part_(part), root_(std::move(root)), capacity_(part.lengths.sum().item<std::int64_t>()) {
    // A contiguous dataset has its size from the start: that of all images; the place of broken ones stays unused.
    bytes_ = root_.create_dataset("bytes", comm::DType::u8, {{capacity_}});
  }

  /// Images [first, last) of the part.
  void add(std::size_t first, std::size_t last, int threads) {
    const auto rows = integers(part_.rows);
    const Block block = read_block(dataset_, rows.subspan(first, last - first), threads);
    buffer_.clear();
    for (std::size_t i = 0; i < block.samples.size(); ++i) {
      if (block.errors[i].empty()) {
        add(static_cast<std::int64_t>(first + i), block.samples[i]);
      } else {
        rejected_rows_.push_back(static_cast<std::int64_t>(first + i));
        rejected_keys_.push_back(dataset_.key(rows[first + i]));
        reasons_.push_back(block.errors[i]);
      }
    }
    if (used_ + std::ssize(buffer_) > capacity_) {
      throw core::InputError(fmt::format(
          "Images between {} and {} have grown while they were being packed. Run again when nothing writes to them.",
          dataset_.key(rows[first]), dataset_.key(rows[last - 1])));
    }
    if (!buffer_.empty()) bytes_.write(std::span(buffer_), used_);
    used_ += std::ssize(buffer_);
  }

  void finish() {
    if (used_ == 0 && capacity_ > 0) {
      std::byte zero{};  // HDF5 places the dataset at its first write, and readers want its place
      bytes_.write(std::span(&zero, 1));
    }
    bytes_.close();
    const auto column = [](std::vector<std::int64_t>& values) { return at::tensor(values, at::kLong); };
    PackedColumns images{.strings = {{"key", std::move(keys_)}},
                         .numbers = {{"begin", column(begins_)},
                                     {"length", column(lengths_)},
                                     {"hash", column(hashes_)},
                                     {"label", column(labels_)}}};
    PackedColumns given = select(part_.columns, column(places_));
    std::ranges::move(given.strings, std::back_inserter(images.strings));
    std::ranges::move(given.numbers, std::back_inserter(images.numbers));
    const PartTable table{identity_of(dataset_, part_),
                          capacity_,
                          std::move(images),
                          {.strings = {{"key", std::move(rejected_keys_)}, {"reason", std::move(reasons_)}},
                           .numbers = {{"row", column(rejected_rows_)}}}};
    save(root_.create_group("images"), table.images);
    save(root_.create_group("rejected"), table.rejected);
    root_.set_attribute("identity", table.identity);
    root_.set_attribute("table_hash", hash_of(table));
  }

 private:
  void add(std::int64_t place, const Sample& sample) {
    places_.push_back(place);
    begins_.push_back(used_ + std::ssize(buffer_));
    lengths_.push_back(std::ssize(sample.bytes));
    hashes_.push_back(std::bit_cast<std::int64_t>(core::hash_bytes(sample.bytes)));
    labels_.push_back(sample.label);
    keys_.push_back(sample.key);
    buffer_.insert(buffer_.end(), sample.bytes.begin(), sample.bytes.end());
  }

  const Dataset& dataset_;
  const Part& part_;
  hdf5::Group root_;
  std::int64_t capacity_, used_ = 0;  // bytes of the dataset
  hdf5::Dataset bytes_;
  std::vector<std::byte> buffer_;
  std::vector<std::int64_t> places_, begins_, lengths_, hashes_, labels_, rejected_rows_;  // places: in Part::rows
  std::vector<std::string> keys_, rejected_keys_, reasons_;
};

/// Reads the images of a written part back.
void verify(const fs::path& file, const PartTable& table, const PackHooks& hooks) {
  const hdf5::File written(file, hdf5::Access::read);
  const hdf5::Dataset bytes = written.root().dataset("bytes");
  const auto lengths = integers(table.images, "length"), hashes = integers(table.images, "hash");
  std::vector<std::byte> buffer;
  std::int64_t begin = 0;
  for (std::size_t first = 0, last = 0; first < lengths.size(); first = last) {
    last = block_end(lengths, first);
    std::int64_t size = 0;
    for (std::size_t i = first; i < last; ++i) size += lengths[i];
    buffer.resize(static_cast<std::size_t>(size));
    bytes.read(std::span(buffer), begin);
    begin += size;
    std::span<const std::byte> rest = buffer;
    for (std::size_t i = first; i < last; ++i) {
      const auto length = static_cast<std::size_t>(lengths[i]);
      if (core::hash_bytes(rest.first(length)) != std::bit_cast<std::uint64_t>(hashes[i])) {
        throw core::StorageError(
            fmt::format("{}: the image {} reads back differently from what was written: check "
                        "the disk.",
                        file.string(), strings(table.images, "key")[i]));
      }
      rest = rest.subspan(length);
    }
    hooks.alive();
  }
}

/// Whether no image that was broken has become readable.
bool still_broken(const Dataset& dataset, const Part& part, const PartTable& table, int threads) {
  std::vector<std::int64_t> rows;
  for (const std::int64_t place : integers(table.rejected, "row"))
    rows.push_back(integers(part.rows)[static_cast<std::size_t>(place)]);
  const Block block = read_block(dataset, rows, threads);
  return std::ranges::none_of(block.errors, &std::string::empty);
}

}  // namespace

std::int64_t PartTable::image_count() const {
  return std::ssize(integers(images, "length"));
}

std::int64_t PartTable::image_bytes() const {
  const auto lengths = integers(images, "length");
  return std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
}

void PartTable::add_rejected_to(std::vector<Rejected>& list) const {
  const auto &keys = strings(rejected, "key"), &reasons = strings(rejected, "reason");
  for (std::size_t i = 0; i < keys.size(); ++i) list.push_back({keys[i], reasons[i]});
}

PackedColumns empty_image_table(const PackedColumns& columns) {
  PackedColumns table{.strings = {{"key", {}}}, .numbers = {}};
  for (const char* name : {"begin", "length", "hash", "label"}) table.numbers.emplace_back(name, no_numbers());
  for (const auto& [name, values] : columns.strings) table.strings.emplace_back(name, std::vector<std::string>());
  for (const auto& [name, values] : columns.numbers) table.numbers.emplace_back(name, at::empty({0}, values.options()));
  return table;
}

PackedColumns select(const PackedColumns& columns, const at::Tensor& rows) {
  PackedColumns chosen;
  for (const auto& [name, values] : columns.numbers) chosen.numbers.emplace_back(name, values.index_select(0, rows));
  for (const auto& [name, values] : columns.strings) {
    std::vector<std::string>& column = chosen.strings.emplace_back(name, std::vector<std::string>()).second;
    for (const std::int64_t row : integers(rows)) column.push_back(values.at(static_cast<std::size_t>(row)));
  }
  return chosen;
}

std::optional<PartTable> write_part(const Dataset& dataset, const Part& part, const PackConfig& config,
                                    const PackHooks& hooks, const std::function<void(std::int64_t)>& progress) {
  const core::TemporaryFile temporary(part.file.string() + ".tmp");
  const auto lengths = integers(part.lengths);
  hdf5::File file(temporary.path(), hdf5::Access::create);
  {
    PartWriter writer(dataset, part, file.root());
    for (std::size_t first = 0, last = 0; first < lengths.size(); first = last) {
      if (hooks.stop()) return {};
      last = block_end(lengths, first);
      writer.add(first, last, config.threads);
      progress(static_cast<std::int64_t>(last));
    }
    writer.finish();
  }
  file.close();
  core::evict_from_cache(temporary.path());
  PartTable table = read_part_table(temporary.path(), part.columns);
  verify(temporary.path(), table, hooks);
  core::publish_file(temporary.path(), part.file);
  return table;
}

PartTable read_part_table(const fs::path& file, const PackedColumns& columns) {
  const hdf5::File part(file, hdf5::Access::read);
  const hdf5::Group root = part.root();
  PartTable table{root.integer_attribute("identity"), root.dataset("bytes").shape().at(0), empty_image_table(columns),
                  empty_rejected_table()};
  load(root.group("images"), table.images);
  load(root.group("rejected"), table.rejected);
  if (hash_of(table) != root.integer_attribute("table_hash")) {
    throw core::StorageError(
        fmt::format("The table of the packed images {} is damaged. Remove the file and pack again.", file.string()));
  }
  return table;
}

std::optional<PartTable> find_part(const Dataset& dataset, const Part& part, const PackConfig& config) {
  std::error_code unknown;
  if (!fs::exists(part.file, unknown)) return {};
  try {
    PartTable table = read_part_table(part.file, part.columns);
    if (table.identity != identity_of(dataset, part) || !still_broken(dataset, part, table, config.threads)) return {};
    return table;
  } catch (const core::StorageError&) {
    return {};  // cut off or damaged: written anew
  }
}

}  // namespace allosaur::data
