#include <string_view>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "data/sources.hpp"
#include "io/tar.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// A member's name as WebDataset splits it: "a/b.c/0001.seg.png" = sample "a/b.c/0001", extension "seg.png".
struct Name {
  std::string_view sample, extension;
};
Name split(std::string_view path) {
  const std::size_t slash = path.rfind('/'), begin = slash == std::string_view::npos ? 0 : slash + 1;
  const std::size_t dot = path.find('.', begin);
  if (dot == std::string_view::npos) return {path, {}};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlank) - begin + 1);
}

/// The class that a `.json` member names, if it does.
std::string class_in_json(std::string_view text) {
  const json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) throw core::InputError("it is not JSON");
  if (value.is_number_integer()) return value.dump();
  if (!value.is_object()) return {};
  for (const char* name : {"cls", "label", "class"}) {
    const auto found = value.find(name);
    if (found == value.end()) continue;
    if (found->is_number_integer()) return found->dump();
    if (found->is_string()) return found->get<std::string>();
  }
  return {};
}

/// The class that a label member holds; "" when it is none, or names none.
std::string class_in(std::string_view extension, std::string_view text) {
  if (extension == "cls" || extension == "txt") {
    const std::string_view name = trimmed(text);
    if (name.size() > 256 || name.find('\n') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
      if (extension == "txt") return {};  // a caption
      throw core::InputError("it is not a class");
    }
    return std::string(name);
  }
  return extension == "json" ? class_in_json(text) : std::string();
}

/// The class of a member of a tar without labels: its top folder, else the tar's name.
std::string folder_class(std::string_view member, const fs::path& shard) {
  while (member.starts_with("./")) member.remove_prefix(2);
  const std::size_t slash = member.find('/');
  return slash == std::string_view::npos || slash == 0 ? shard.stem().string() : std::string(member.substr(0, slash));
}

class TarScanner final : public Scanner {
 public:
  explicit TarScanner(std::vector<fs::path> shards) : shards_(std::move(shards)) {}

  std::vector<std::string> units(int /*wanted*/, IndexRows& rows) override {
    for (const fs::path& shard : shards_) rows.containers.push_back(shard.string());
    rows.stamps.push_back(stamp_of(shards_.front().parent_path()));  // shards may be added
    return rows.containers;
  }

  void scan(const std::string& unit, int number, IndexRows& rows) const override {
    const fs::path shard = unit;
    rows.stamps.push_back(stamp_of(shard));
    const std::string prefix = shard.filename().string() + '/';
    Sample sample;
    bool classes = false;
    std::vector<Sample> samples;
    const auto finish = [&] {
      if (sample.part.length >= 0) samples.push_back(std::move(sample));
      sample = {};
    };
    const auto visit = [&](const io::TarMember& member, std::span<const std::byte> content) {
      const std::size_t slash = member.name.rfind('/');
      const std::string_view base = std::string_view(member.name).substr(slash == std::string::npos ? 0 : slash + 1);
      if (base.empty() || base.front() == '.' || base.starts_with("__")) return;
      const Name name = split(member.name);
      if (name.sample != sample.name) finish();
      sample.name = name.sample;
      if (has_image_extension(base)) {
        // Of several images of a sample the plainest name is meant: `jpg` before `seg.png`, else the first.
        const bool plain = name.extension.find('.') == std::string_view::npos;
        if (sample.part.length >= 0 && (sample.plain || !plain)) return;
        sample.plain = plain;
        sample.member = member.name;
        sample.part = {number, member.begin, member.length, core::hash_bytes(content)};
        return;
      }
      try {
        const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
        std::string found = class_in(name.extension, text);
        if (found.empty()) return;
        classes = true;
        sample.class_name = std::move(found);
      } catch (const core::InputError& error) {
        rows.problems.push_back({prefix + member.name, fmt::format("The label is not used: {}.", error.what())});
      }
    };
    try {
      const std::string damage = io::scan_tar(shard, visit);
      if (!damage.empty()) rows.problems.push_back({shard.string(), damage});
    } catch (const core::InputError& error) {
      rows.problems.push_back({shard.string(), error.what()});
    }
    finish();
    const bool captions = are_captions(samples);
    for (const Sample& image : samples) {
      const std::string class_name = captions  ? std::string()
                                     : classes ? image.class_name
                                               : folder_class(image.member, shard);
      rows.add(prefix + image.member, class_name, image.part);
    }
  }

  std::vector<std::string> class_order() const override { return read_class_order(shards_.front().parent_path()); }
  bool expensive() const override { return true; }

 private:
  struct Sample {
    std::string name, member, class_name;
    bool plain = false;
    IndexRows::Part part{0, 0, -1, 0};
  };

  /// Texts that hardly ever come twice describe images; they do not name classes.
  static bool are_captions(const std::vector<Sample>& samples) {
    constexpr std::size_t kEnough = 20;
    std::unordered_set<std::string_view> names;
    for (const Sample& sample : samples) names.insert(sample.class_name);
    return samples.size() >= kEnough && 2 * names.size() > samples.size();
  }

  std::vector<fs::path> shards_;
};

}  // namespace

std::unique_ptr<Scanner> scan_tars(std::vector<fs::path> shards) {
  return std::make_unique<TarScanner>(std::move(shards));
}

}  // namespace allosaur::data
