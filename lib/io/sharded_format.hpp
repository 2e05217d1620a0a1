#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "io/hdf5.hpp"

/// What the writer and the reader of sharded arrays share: the manifest inside the index, and the hash of a slice.
namespace allosaur::io::sharded {

struct Array {
  std::string name;
  std::optional<comm::DType> dtype;     // none: strings
  std::vector<std::int64_t> row_shape;  // of one row
  bool operator==(const Array&) const = default;
  std::int64_t row_elements() const;
  std::int64_t row_bytes() const;  ///< not for strings
};

/// The rows of one array in one shard.
struct Slice {
  std::int64_t rows = 0;
  std::string xxh3;
  std::size_t length = 0;  // bytes of the longest string
};

struct Shard {
  std::string file;  // in the index's folder
  std::int64_t bytes = 0;
  std::vector<Slice> slices;  // one an array
};

using Attributes = std::map<std::string, std::variant<std::int64_t, std::string>>;

struct Manifest {
  std::vector<Array> arrays;
  std::vector<Shard> shards;
  Attributes attributes;
};

std::string to_text(const Manifest& manifest);
/// Throws core::StorageError naming `source` when the text is not a manifest.
Manifest from_text(const std::string& text, const std::filesystem::path& source);

/// Writes an index file with the manifest, the attributes and the joined arrays. Not atomic.
void write_index(const std::filesystem::path& index, const Manifest& manifest);
/// The manifest of an index file, checked against its hash.
Manifest read_index(const std::filesystem::path& index);

/// Takes rows [first, first + count) as they come by.
using Visit = std::function<void(std::int64_t first, std::int64_t count, std::span<const std::byte> bytes)>;
/// Hash of a slice, in pieces of a few MiB: of rows in memory, or of rows read from a shard (each piece is shown to
/// `visit`).
std::string hash_of(const Array& array, std::span<const std::byte> bytes);
std::string hash_of(const Array& array, std::int64_t rows, const hdf5::Group& shard, const Visit& visit = {});
std::string hash_of(std::span<const std::string> strings);

}  // namespace allosaur::io::sharded
