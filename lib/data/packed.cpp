#include "data/packed.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "data/sources.hpp"
#include "io/hdf5.hpp"
#include "io/sharded_array.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& file, const std::string& reason) {
  throw core::StorageError(
      fmt::format("The packed images {} cannot be used: {}. Pack them again.", file.string(), reason));
}

/// A part file's place for image bytes: [offset, offset + size) of the file.
struct Place {
  std::int64_t offset = 0, size = 0;
};
Place place_in(const fs::path& part, std::int64_t size) {
  const io::hdf5::File file(part, io::hdf5::Access::read);
  const io::hdf5::Dataset bytes = file.root().dataset("bytes");
  if (bytes.dtype() != comm::DType::u8 || bytes.shape() != std::vector<std::int64_t>{size})
    fail(part, fmt::format("its dataset `bytes` does not have {} bytes", size));
  return {size > 0 ? bytes.file_offset() : 0, size};
}

/// The table of packed images is an index already; as one of ours it can be mapped, and shared by ranks.
class PackedScanner final : public Scanner {
 public:
  explicit PackedScanner(fs::path index) : index_(std::move(index)) {}

  std::vector<std::string> units(int /*wanted*/, IndexRows& rows) override {
    const io::ShardedReader table(index_);
    const std::vector<std::string> names = table.names();
    for (const char* name : {"file_bytes", "shard", "begin", "length", "hash", "label", "key", "class_name"}) {
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        throw core::InputError(
            fmt::format("{} does not hold packed images: it has no column `{}`.", index_.string(), name));
      }
    }
    class_names_ = table.read_strings("class_name");
    const std::int64_t parts = table.read("file_bytes").numel();
    for (std::int64_t part = 0; part < parts; ++part) {
      rows.containers.push_back(packed_part_file(index_, part).string());
      rows.stamps.push_back(stamp_of(rows.containers.back()));
    }
    rows.stamps.push_back(stamp_of(index_));
    return {index_.string()};
  }

  void scan(const std::string& /*unit*/, int /*number*/, IndexRows& rows) const override {
    const io::ShardedReader table(index_);
    const std::vector<std::string> keys = table.read_strings("key");
    const auto column = [&](const char* name, std::int64_t length) {
      at::Tensor values = table.read(name).contiguous();
      if (values.scalar_type() != at::kLong || values.dim() != 1 || (length >= 0 && values.numel() != length))
        fail(index_, fmt::format("its column `{}` is not a whole number an image", name));
      return values;
    };
    const at::Tensor file_bytes = column("file_bytes", -1), shard = column("shard", std::ssize(keys)),
                     begin = column("begin", std::ssize(keys)), length = column("length", std::ssize(keys)),
                     hash = column("hash", std::ssize(keys)), label = column("label", std::ssize(keys));
    std::vector<Place> places;
    for (std::int64_t part = 0; part < file_bytes.numel(); ++part) {
      places.push_back(place_in(packed_part_file(index_, part), value(file_bytes, part)));
    }
    for (std::int64_t row = 0; row < std::ssize(keys); ++row) {
      const std::string& key = keys[static_cast<std::size_t>(row)];
      const std::int64_t part = value(shard, row), first = value(begin, row), size = value(length, row);
      if (part < 0 || part >= std::ssize(places) || first < 0 || size < 0 ||
          first > places[static_cast<std::size_t>(part)].size - size) {
        rows.problems.push_back({key, fmt::format("The place that {} records for it is no place.", index_.string())});
        continue;
      }
      const std::int64_t number = value(label, row);
      const bool known = number >= 0 && number < std::ssize(class_names_);
      rows.add(key, known ? class_names_[static_cast<std::size_t>(number)] : std::string(),
               {static_cast<std::int32_t>(part), places[static_cast<std::size_t>(part)].offset + first, size,
                static_cast<std::uint64_t>(value(hash, row))});
    }
  }

  std::vector<std::string> class_order() const override { return class_names_; }
  bool expensive() const override { return false; }

 private:
  static std::int64_t value(const at::Tensor& values, std::int64_t row) {
    return values.const_data_ptr<std::int64_t>()[row];
  }

  fs::path index_;
  std::vector<std::string> class_names_;  // known after units(), which is where rows are gathered
};

}  // namespace

fs::path packed_part_file(const fs::path& index, std::int64_t number) {
  return index.parent_path() / fmt::format("{}-bytes.{:05}.h5", index.stem().string(), number);
}

std::unique_ptr<Scanner> scan_packed(const fs::path& index) {
  return std::make_unique<PackedScanner>(index);
}

}  // namespace allosaur::data
