#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "data/sources.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::array<std::string_view, 6> kPathNames = {"path", "file", "file_name", "filename", "image", "key"};
constexpr std::array<std::string_view, 5> kClassNames = {"class", "label", "cls", "target", "wnid"};

constexpr std::int64_t kSignOfLife = 1'000'000;  // lines between two

template <std::size_t N>
bool is_one_of(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The fields of a line; those that hold the separator, or quotes (doubled), stand in double quotes.
std::vector<std::string> fields_of(std::string_view line, char separator) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quoted && c == '"' && i + 1 < line.size() && line[i + 1] == '"') {
      fields.back() += line[++i];
    } else if (c == '"' && (quoted || fields.back().empty())) {
      quoted = !quoted;
    } else if (c == separator && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  if (quoted) throw core::InputError("a quotation mark is not closed");
  return fields;
}

class ListScanner final : public Scanner {
 public:
  explicit ListScanner(fs::path list) : list_(std::move(list)) {}

  std::vector<std::string> units(int /*wanted*/, IndexRows& rows) override {
    stamp_class_order(list_.parent_path(), rows.stamps);
    return {list_.string()};
  }

  void scan(const std::string& /*unit*/, int /*number*/, IndexRows& rows) const override {
    rows.stamps.push_back(stamp_of(list_));
    const std::string text = read_list(list_);
    const std::string extension = list_.extension().string();
    if (extension == ".json") {
      scan_json(text, rows);
    } else {
      scan_lines(text, extension, rows);
    }
  }

  std::vector<std::string> class_order() const override { return read_class_order(list_.parent_path()); }
  bool expensive() const override { return false; }

 private:
  static void add(const std::string& path, const std::string& class_name, IndexRows& rows) {
    if (path.empty()) throw core::InputError("it names no file");
    if (path.find('\0') != std::string::npos) throw core::InputError("its path has a zero byte");
    rows.add(path, class_name);
  }

  void scan_lines(std::string_view text, const std::string& extension, IndexRows& rows) const {
    struct {
      std::size_t path = 0, class_name = 1;
    } columns;
    std::int64_t number = 0;
    const auto place = [](std::int64_t line) { return fmt::format("line {}", line); };
    while (!text.empty()) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      ++number;
      if (number % kSignOfLife == 0) alive();
      if (line.empty()) continue;
      try {
        if (extension == ".txt") {
          const std::size_t path = path_length(line);
          add(std::string(line.substr(0, path)), std::string(line.substr(std::min(path + 1, line.size()))), rows);
        } else if (extension == ".jsonl") {
          add_json(json::parse(line), place(number), rows);
        } else {
          const std::vector<std::string> fields = fields_of(line, extension == ".tsv" ? '\t' : ',');
          if (number == 1 && find_columns(fields, columns.path, columns.class_name)) continue;
          const auto field = [&](std::size_t i) { return i < fields.size() ? fields[i] : std::string(); };
          add(field(columns.path), field(columns.class_name), rows);
        }
      } catch (const std::exception& error) {
        reject(place(number), error.what(), rows);
      }
    }
  }

  /// Of a line that may end with a class.
  static std::size_t path_length(std::string_view line) {
    const std::size_t blank = line.find_last_of(" \t");
    if (blank == std::string_view::npos || has_image_extension(line)) return line.size();
    return has_image_extension(line.substr(0, blank)) ? blank : line.size();
  }

  /// Whether the first row of a table names its columns, and where they are.
  static bool find_columns(const std::vector<std::string>& fields, std::size_t& path, std::size_t& class_name) {
    std::optional<std::size_t> found_path, found_class;
    for (std::size_t i = fields.size(); i-- > 0;) {
      if (is_one_of(kPathNames, fields[i])) found_path = i;
      if (is_one_of(kClassNames, fields[i])) found_class = i;
    }
    if (!found_path) return false;
    path = *found_path;
    class_name = found_class.value_or(fields.size());  // a column that no row has
    return true;
  }

  void scan_json(const std::string& text, IndexRows& rows) const {
    json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
    for (const char* member : {"images", "labels"}) {
      if (value.is_object() && value.contains(member)) {
        const json inner = value.at(member);
        value = inner;
      }
    }
    if (!value.is_array()) {
      throw core::InputError(fmt::format(
          "The list {} is not JSON with an array of images (or its member `images` or `labels`).", list_.string()));
    }
    for (std::size_t i = 0; i < value.size(); ++i) {
      try {
        add_json(value[i], fmt::format("entry {}", i), rows);
      } catch (const std::exception& error) {
        reject(fmt::format("entry {}", i), error.what(), rows);
      }
    }
  }

  void add_json(const json& entry, const std::string& place, IndexRows& rows) const {
    const auto text = [](const json& value) {
      if (value.is_string()) return value.get<std::string>();
      if (value.is_number_integer()) return value.dump();
      if (value.is_null()) return std::string();
      throw core::InputError("it is neither a text nor a whole number");
    };
    if (entry.is_string()) return add(entry.get<std::string>(), {}, rows);
    const auto label = [&](const json& value) {
      try {
        return text(value);
      } catch (const core::InputError& error) {
        rows.label_problems.push_back(
            {fmt::format("{}, {}", list_.string(), place), fmt::format("The label is not used: {}.", error.what())});
        return std::string();
      }
    };
    if (entry.is_array()) return add(text(entry.at(0)), label(entry.size() > 1 ? entry.at(1) : json()), rows);
    if (!entry.is_object()) throw core::InputError("it is no object, pair or text");
    const auto member = [&](const auto& names) {
      for (const std::string_view name : names) {
        if (const auto found = entry.find(name); found != entry.end()) return *found;
      }
      return json();
    };
    add(text(member(kPathNames)), label(member(kClassNames)), rows);
  }

  void reject(const std::string& place, const std::string& reason, IndexRows& rows) const {
    rows.problems.push_back({fmt::format("{}, {}", list_.string(), place), fmt::format("Not used: {}.", reason)});
  }

  fs::path list_;
};

}  // namespace

std::string read_list(const fs::path& file) {
  std::error_code error;
  if (!fs::exists(file, error)) return {};
  std::string text = core::read_text(file);
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  return text;
}

bool is_list(const fs::path& file) {
  static constexpr std::array<std::string_view, 5> kExtensions = {".txt", ".csv", ".tsv", ".json", ".jsonl"};
  return is_one_of(kExtensions, file.extension().string());
}

std::unique_ptr<Scanner> scan_list(const fs::path& list) {
  return std::make_unique<ListScanner>(list);
}

}  // namespace allosaur::data
