#include <algorithm>
#include <string_view>
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

constexpr std::int64_t kSignOfLife = 64LL << 20;  // bytes read between two
constexpr std::int64_t kMemberCost = 4096;        // of a member, however small, in bytes read

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

std::string_view base_of(std::string_view path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
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

/// While rows are gathered, a class name begins with what it is from: a label, or a text that may be a caption. A text
/// that is surely a caption has no name after it.
constexpr char kLabel = '=', kText = '~';
constexpr std::int64_t kMostTexts = 1'000'000;  // different ones that a rank keeps; no set has as many classes

/// What a member says about its sample's class, and how far that is to be trusted.
struct Claim {
  int rank = 0;  // 0 = none
  std::string class_name;
};

Claim claim_in(std::string_view extension, std::string_view text) {
  if (extension == "json") {
    const std::string name = class_in_json(text);
    return name.empty() ? Claim{} : Claim{2, kLabel + name};
  }
  if (extension != "cls" && extension != "txt") return {};
  const std::string_view name = trimmed(text);
  if (name.empty()) return {};
  const bool possible =
      name.size() <= 256 && name.find('\n') == std::string_view::npos && name.find('\0') == std::string_view::npos;
  if (extension == "txt") return {1, kText + std::string(possible ? name : std::string_view())};
  if (!possible) throw core::InputError("it is not a class");
  return {3, kLabel + std::string(name)};
}

std::int64_t texts_in(const IndexRows& rows) {
  return std::ranges::count_if(rows.class_names(),
                               [](const std::string& name) { return name.front() == kText && name.size() > 1; });
}

/// Texts that hardly ever come twice describe images; they do not name classes.
void drop_captions(IndexRows& rows) {
  constexpr std::int64_t kEnough = 20;
  std::int64_t texts = 0, captions = 0;
  for (std::int64_t row = 0; row < rows.size(); ++row) {
    const std::string_view name = rows.class_name(row);
    if (!name.starts_with(kText)) continue;
    ++texts;
    captions += name.size() == 1;
  }
  if (texts < kEnough || 2 * (texts_in(rows) + captions) <= texts) return;
  rows.rename_classes([&](std::int64_t row) {
    const std::string_view name = rows.class_name(row);
    return std::string(name.starts_with(kText) ? name.substr(0, 1) : name);
  });
}

/// The class of an image of tars without labels: its top folder, else the tar's name.
std::string folder_class(std::string_view key) {
  const fs::path shard = key.substr(0, key.find('/'));
  std::string_view member = key.substr(key.find('/') + 1);
  while (member.starts_with("./")) member.remove_prefix(2);
  const std::size_t slash = member.find('/');
  return slash == std::string_view::npos || slash == 0 ? shard.stem().string() : std::string(member.substr(0, slash));
}

class TarScanner final : public Scanner {
 public:
  explicit TarScanner(std::vector<fs::path> shards) : shards_(std::move(shards)) {}

  std::vector<std::string> units(int /*wanted*/, IndexRows& rows) override {
    for (const fs::path& shard : shards_) rows.containers.push_back(shard.string());
    const fs::path folder = shards_.front().parent_path();
    rows.stamps.push_back(stamp_of(folder));  // shards may be added
    stamp_class_order(folder, rows.stamps);
    return rows.containers;
  }

  void scan(const std::string& unit, int number, IndexRows& rows) const override {
    const fs::path shard = unit;
    Stamp stamp = stamp_of(shard);
    const std::string prefix = shard.filename().string() + '/';
    Sample sample;
    std::int64_t read = 0;
    const auto finish = [&] {
      if (sample.part.length >= 0) rows.add(prefix + sample.member, sample.claim.class_name, sample.part);
      sample = {};
    };
    const auto visit = [&](const io::TarMember& member, std::span<const std::byte> content) {
      read += member.length + kMemberCost;
      if (read >= kSignOfLife) {
        read = 0;
        alive();
      }
      const std::string_view base = base_of(member.name);
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
        Claim claim = claim_in(name.extension, text);
        if (claim.rank > sample.claim.rank) sample.claim = std::move(claim);
      } catch (const core::InputError& error) {
        rows.label_problems.push_back({prefix + member.name, fmt::format("The label is not used: {}.", error.what())});
      }
    };
    const auto skip = [&](const std::string& name, const std::string& reason) {
      const std::string_view base = base_of(name);
      if (has_image_extension(base) && base.front() != '.')
        rows.problems.push_back({prefix + name, fmt::format("Not used: {}.", reason)});
    };
    try {
      const std::string damage = io::scan_tar(shard, visit, skip);
      if (!damage.empty()) rows.problems.push_back({shard.string(), damage});
    } catch (const core::InputError& error) {
      rows.problems.push_back({shard.string(), error.what()});
    } catch (const core::StorageError& error) {  // which the next job may not meet
      rows.problems.push_back({shard.string(), error.what()});
      stamp.changed = Stamp::never;
    }
    finish();
    rows.stamps.push_back(std::move(stamp));
    if (texts_in(rows) > kMostTexts) drop_captions(rows);
  }

  /// A shard alone does not tell captions from classes, nor whether the others have labels.
  void decide_classes(IndexRows& rows) const override {
    drop_captions(rows);
    const bool labelled = !rows.class_names().empty();
    rows.rename_classes([&](std::int64_t row) {
      const std::string_view name = rows.class_name(row);
      return labelled ? std::string(name.substr(std::min<std::size_t>(1, name.size()))) : folder_class(rows.key(row));
    });
  }

  std::vector<std::string> class_order() const override { return read_class_order(shards_.front().parent_path()); }
  bool expensive() const override { return true; }

 private:
  struct Sample {
    std::string name, member;
    Claim claim;
    bool plain = false;
    IndexRows::Part part{0, 0, -1, 0};
  };

  std::vector<fs::path> shards_;
};

}  // namespace

std::unique_ptr<Scanner> scan_tars(std::vector<fs::path> shards) {
  return std::make_unique<TarScanner>(std::move(shards));
}

}  // namespace allosaur::data
