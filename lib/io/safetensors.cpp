#include "io/safetensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>
#include <string_view>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"

// The format (Hugging Face safetensors 0.x): a 64-bit little-endian length, a JSON header of that many bytes, then the
// tensors' bytes one after the other without gaps.
namespace allosaur::io {
namespace {

static_assert(std::endian::native == std::endian::little);
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // as the reference reader
constexpr int kMaxHeaderDepth = 3;                      // header > tensor > shape

struct TypeName {
  std::string_view name;
  at::ScalarType type;
};
constexpr std::array<TypeName, 10> kTypes{{{"F64", at::kDouble},
                                           {"F32", at::kFloat},
                                           {"F16", at::kHalf},
                                           {"BF16", at::kBFloat16},
                                           {"I64", at::kLong},
                                           {"I32", at::kInt},
                                           {"I16", at::kShort},
                                           {"I8", at::kChar},
                                           {"U8", at::kByte},
                                           {"BOOL", at::kBool}}};

/// Where one tensor lies: bytes [begin, end) after the header.
struct Entry {
  std::string name;
  at::ScalarType type{};
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

[[noreturn]] void damaged(const std::filesystem::path& file, const std::string& what) {
  throw core::StorageError(fmt::format("{} is not a valid safetensors file: {}.", file.string(), what));
}

/// As nlohmann::json::parse, but refuses repeated keys (which it would resolve silently) and deep nesting.
nlohmann::json parse_header(const std::string& text, const std::filesystem::path& file) {
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto inspect = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > kMaxHeaderDepth) damaged(file, "its header is nested too deeply");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) {
      damaged(file, fmt::format("the key {} stands in its header twice", value.dump()));
    }
    return true;
  };
  return nlohmann::json::parse(text, inspect);
}

Entry parse_entry(const std::string& name, const nlohmann::json& fields, const std::filesystem::path& file) {
  Entry entry;
  entry.name = name;
  const auto& type = fields.at("dtype").get_ref<const std::string&>();
  const auto* known = std::find_if(kTypes.begin(), kTypes.end(), [&](const TypeName& t) { return t.name == type; });
  if (known == kTypes.end())
    damaged(file, fmt::format("tensor '{}' has the type '{}', which is not read here", name, type));
  entry.type = known->type;
  std::uint64_t bytes = c10::elementSize(entry.type);
  for (const nlohmann::json& extent : fields.at("shape")) {
    if (!extent.is_number_unsigned() || __builtin_mul_overflow(bytes, extent.get<std::uint64_t>(), &bytes) ||
        extent.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()}) {
      damaged(file, fmt::format("tensor '{}' has the impossible shape {}", name, fields.at("shape").dump()));
    }
    entry.shape.push_back(extent.get<std::int64_t>());
  }
  const nlohmann::json& offsets = fields.at("data_offsets");
  if (offsets.size() != 2 || !offsets.at(0).is_number_unsigned() || !offsets.at(1).is_number_unsigned()) {
    damaged(file, fmt::format("tensor '{}' has the impossible offsets {}", name, offsets.dump()));
  }
  entry.begin = offsets.at(0).get<std::uint64_t>();
  entry.end = offsets.at(1).get<std::uint64_t>();
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    damaged(file, fmt::format("the offsets {} of tensor '{}' do not fit its {} bytes", offsets.dump(), name, bytes));
  }
  return entry;
}

/// The tensors in file order; throws unless they cover `data_bytes` without gap or overlap.
std::vector<Entry> parse_entries(const nlohmann::json& header, std::uint64_t data_bytes,
                                 const std::filesystem::path& file) {
  std::vector<Entry> entries;
  for (const auto& [name, fields] : header.items()) {
    if (name != "__metadata__") entries.push_back(parse_entry(name, fields, file));
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  std::uint64_t position = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != position) {
      damaged(file, fmt::format("tensor '{}' begins at byte {} where {} was expected (a gap or an overlap)", entry.name,
                                entry.begin, position));
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    damaged(file, fmt::format("its tensors take {} bytes and it holds {} (it may be cut off)", position, data_bytes));
  }
  return entries;
}

void read_bytes(std::ifstream& stream, void* out, std::uint64_t bytes, const std::filesystem::path& file,
                std::string_view what) {
  if (!stream.read(static_cast<char*>(out), static_cast<std::streamsize>(bytes))) {
    throw core::StorageError(fmt::format("{}: cannot read {}: {}.", file.string(), what, std::strerror(errno)));
  }
}

at::Tensor read_tensor(std::ifstream& stream, const Entry& entry, const std::filesystem::path& file) {
  const bool boolean = entry.type == at::kBool;  // read as numbers: a bool of any other value than 0 or 1 is undefined
  at::Tensor tensor = at::empty(entry.shape, boolean ? at::kByte : entry.type);
  if (entry.end > entry.begin) {
    read_bytes(stream, tensor.mutable_data_ptr(), entry.end - entry.begin, file,
               fmt::format("tensor '{}'", entry.name));
  }
  return boolean ? tensor.ne(0) : tensor;
}

std::string make_header(const NamedTensors& tensors, const std::map<std::string, std::string>& metadata,
                        const std::filesystem::path& file) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::size_t position = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto* known = std::find_if(kTypes.begin(), kTypes.end(),
                                     [&tensor = tensor](const TypeName& t) { return t.type == tensor.scalar_type(); });
    if (known == kTypes.end()) {
      throw core::StorageError(
          fmt::format("{}: tensor '{}' has a type that safetensors files do not hold here.", file.string(), name));
    }
    if (header.contains(name)) {
      throw core::StorageError(fmt::format("{}: two tensors have the name '{}'.", file.string(), name));
    }
    const std::size_t end = position + tensor.nbytes();
    header[name] = {{"dtype", known->name}, {"shape", tensor.sizes().vec()}, {"data_offsets", {position, end}}};
    position = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

const at::Tensor* Safetensors::find(const std::string& name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const auto& entry) { return entry.first == name; });
  return found == tensors.end() ? nullptr : &found->second;
}

Safetensors read_safetensors(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::error_code error;
  const std::uint64_t file_bytes = std::filesystem::file_size(file, error);
  if (!stream || error) {
    throw core::StorageError(fmt::format("{}: cannot open the file: {}.", file.string(), std::strerror(errno)));
  }
  std::uint64_t header_bytes = 0;
  if (file_bytes < sizeof header_bytes) damaged(file, "it is too short");
  read_bytes(stream, &header_bytes, sizeof header_bytes, file, "the header");
  const std::uint64_t rest = file_bytes - sizeof header_bytes;
  if (header_bytes > kMaxHeaderBytes || header_bytes > rest) {
    damaged(file, fmt::format("it claims a header of {} bytes", header_bytes));
  }
  std::string text(header_bytes, '\0');
  read_bytes(stream, text.data(), header_bytes, file, "the header");

  Safetensors result;
  try {
    const nlohmann::json header = parse_header(text, file);
    if (!header.is_object()) damaged(file, "its header is not a JSON object");
    if (header.contains("__metadata__")) header.at("__metadata__").get_to(result.metadata);
    for (const Entry& entry : parse_entries(header, rest - header_bytes, file)) {
      result.tensors.emplace_back(entry.name, read_tensor(stream, entry, file));
    }
  } catch (const nlohmann::json::exception& problem) {
    damaged(file, problem.what());
  }
  return result;
}

void write_safetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  NamedTensors ordered;
  for (const auto& [name, tensor] : tensors) ordered.emplace_back(name, tensor.detach().to(at::kCPU).contiguous());
  // Widest elements first, as the reference writer: every tensor is then aligned to its element size.
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const auto& a, const auto& b) { return a.second.element_size() > b.second.element_size(); });
  const std::string header = make_header(ordered, metadata, file);
  const std::uint64_t header_bytes = header.size();

  const core::TemporaryFile temporary(file.string() + ".tmp");
  std::ofstream stream(temporary.path(), std::ios::binary | std::ios::trunc);
  stream.write(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
  stream.write(header.data(), std::ssize(header));
  for (const auto& [name, tensor] : ordered) {
    stream.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  }
  stream.close();
  if (!stream) {
    throw core::StorageError(
        fmt::format("{}: cannot write the file: {}.", temporary.path().string(), std::strerror(errno)));
  }
  core::publish_file(temporary.path(), file);
}

}  // namespace allosaur::io
