#include "io/sharded_format.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"

namespace allosaur::io::sharded {
namespace {

constexpr std::int64_t kVersion = 1;
constexpr const char* kGroup = "_sharded";  // beside the joined arrays in the index
constexpr const char* kManifest = "manifest";
constexpr const char* kHash = "xxh3";
constexpr const char* kStrings = "string";

std::optional<comm::DType> dtype_named(const std::string& name, const std::filesystem::path& source) {
  if (name == kStrings) return std::nullopt;
  for (const comm::DType dtype : {comm::DType::u8, comm::DType::i32, comm::DType::i64, comm::DType::f16,
                                  comm::DType::bf16, comm::DType::f32, comm::DType::f64}) {
    if (name == comm::name_of(dtype)) return dtype;
  }
  throw core::StorageError(
      fmt::format("{}: the element type '{}' is not known to this version.", source.string(), name));
}

/// Calls body(first, count) for one piece of rows after the other; not at all when the rows are empty.
template <class Body>
void for_each_piece(const Array& array, std::int64_t rows, Body&& body) {
  constexpr std::int64_t kPieceBytes = std::int64_t{4} << 20;
  if (array.row_bytes() == 0) return;
  const std::int64_t piece = std::max<std::int64_t>(1, kPieceBytes / array.row_bytes());
  for (std::int64_t first = 0; first < rows; first += piece) body(first, std::min(piece, rows - first));
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

void fill_index(hdf5::Group root, const Manifest& manifest) {
  for (const auto& [name, value] : manifest.attributes) {
    std::visit([&, &key = name](const auto& v) { root.set_attribute(key, v); }, value);
  }
  for (std::size_t a = 0; a < manifest.arrays.size(); ++a) {
    const Array& array = manifest.arrays[a];
    std::vector<hdf5::VirtualSlice> slices;
    std::vector<std::int64_t> shape{0};
    std::size_t length = 0;
    for (const Shard& shard : manifest.shards) {
      slices.push_back({shard.file, "/" + array.name, shard.slices[a].rows});
      shape[0] += shard.slices[a].rows;
      length = std::max(length, shard.slices[a].length);
    }
    shape.insert(shape.end(), array.row_shape.begin(), array.row_shape.end());
    if (array.dtype) {
      root.create_virtual_dataset(array.name, *array.dtype, shape, slices);
    } else {
      root.create_virtual_strings(array.name, length, slices);
    }
  }
  hdf5::Group own = root.create_group(kGroup);
  const std::string text = to_text(manifest);
  own.set_attribute(kHash, core::hash_hex(core::hash_bytes(bytes_of(text))));
  own.write_strings(kManifest, {&text, 1});
}

}  // namespace

std::int64_t Array::row_elements() const {
  return std::accumulate(row_shape.begin(), row_shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::int64_t Array::row_bytes() const {
  return row_elements() * static_cast<std::int64_t>(comm::size_of(dtype.value()));
}

std::string to_text(const Manifest& manifest) {
  nlohmann::json arrays = nlohmann::json::array(), shards = nlohmann::json::array(),
                 attributes = nlohmann::json::object();
  for (const Array& array : manifest.arrays) {
    arrays.push_back({{"name", array.name},
                      {"type", array.dtype ? comm::name_of(*array.dtype) : kStrings},
                      {"row_shape", array.row_shape}});
  }
  for (const Shard& shard : manifest.shards) {
    nlohmann::json slices = nlohmann::json::array();
    for (const Slice& slice : shard.slices) {
      slices.push_back({{"rows", slice.rows}, {"xxh3", slice.xxh3}, {"length", slice.length}});
    }
    shards.push_back({{"file", shard.file}, {"bytes", shard.bytes}, {"slices", slices}});
  }
  for (const auto& [name, value] : manifest.attributes) {
    std::visit([&, &key = name](const auto& v) { attributes[key] = v; }, value);
  }
  return nlohmann::json{{"version", kVersion}, {"arrays", arrays}, {"shards", shards}, {"attributes", attributes}}
      .dump();
}

Manifest from_text(const std::string& text, const std::filesystem::path& source) {
  try {
    const nlohmann::json root = nlohmann::json::parse(text);
    if (root.at("version") != kVersion) {
      throw core::StorageError(
          fmt::format("{}: sharded arrays of version {} cannot be read by this program, which reads {}.",
                      source.string(), root.at("version").dump(), kVersion));
    }
    Manifest manifest;
    for (const auto& array : root.at("arrays")) {
      manifest.arrays.push_back({array.at("name"), dtype_named(array.at("type"), source), array.at("row_shape")});
    }
    for (const auto& entry : root.at("shards")) {
      Shard shard{entry.at("file"), entry.at("bytes"), {}};
      for (const auto& slice : entry.at("slices")) {
        shard.slices.push_back({slice.at("rows"), slice.at("xxh3"), slice.at("length")});
      }
      if (shard.slices.size() != manifest.arrays.size()) {
        throw core::StorageError(fmt::format("{}: the shard {} has not all arrays.", source.string(), shard.file));
      }
      manifest.shards.push_back(std::move(shard));
    }
    for (const auto& [name, value] : root.at("attributes").items()) {
      if (value.is_string()) {
        manifest.attributes[name] = value.get<std::string>();
      } else {
        manifest.attributes[name] = value.get<std::int64_t>();
      }
    }
    return manifest;
  } catch (const nlohmann::json::exception& problem) {
    throw core::StorageError(
        fmt::format("{}: the list of shards cannot be read: {}.", source.string(), problem.what()));
  }
}

void write_index(const std::filesystem::path& index, const Manifest& manifest) {
  hdf5::File file(index, hdf5::Access::create);
  fill_index(file.root(), manifest);
  file.close();
}

Manifest read_index(const std::filesystem::path& index) {
  const hdf5::File file(index, hdf5::Access::read);
  const hdf5::Group root = file.root();
  if (!root.has(kGroup)) {
    throw core::StorageError(fmt::format("{}: this HDF5 file is not the index of a sharded array.", index.string()));
  }
  const hdf5::Group own = root.group(kGroup);
  const std::vector<std::string> texts = own.strings(kManifest);
  if (texts.size() != 1 || core::hash_hex(core::hash_bytes(bytes_of(texts[0]))) != own.text_attribute(kHash)) {
    throw core::StorageError(
        fmt::format("{}: the index is damaged (its list of shards does not match its checksum).", index.string()));
  }
  return from_text(texts[0], index);
}

std::string hash_of(const Array& array, std::span<const std::byte> bytes) {
  std::uint64_t hash = 0;
  const auto row = static_cast<std::size_t>(array.row_bytes());
  for_each_piece(
      array, row == 0 ? 0 : static_cast<std::int64_t>(bytes.size() / row), [&](std::int64_t first, std::int64_t count) {
        hash = core::hash_bytes(
            bytes.subspan(static_cast<std::size_t>(first) * row, static_cast<std::size_t>(count) * row), hash);
      });
  return core::hash_hex(hash);
}

std::string hash_of(const Array& array, std::int64_t rows, const hdf5::Group& shard, const Visit& visit) {
  std::uint64_t hash = 0;
  std::vector<std::byte> piece;
  const hdf5::Dataset dataset = shard.dataset(array.name);
  for_each_piece(array, rows, [&](std::int64_t first, std::int64_t count) {
    piece.resize(static_cast<std::size_t>(count * array.row_bytes()));
    dataset.read({piece.data(), count * array.row_elements(), array.dtype.value()}, first);
    hash = core::hash_bytes(piece, hash);
    if (visit) visit(first, count, piece);
  });
  return core::hash_hex(hash);
}

std::string hash_of(std::span<const std::string> strings) {
  std::string joined;
  for (const std::string& text : strings) joined.append(text).push_back('\0');
  return core::hash_hex(core::hash_bytes(bytes_of(joined)));
}

}  // namespace allosaur::io::sharded
