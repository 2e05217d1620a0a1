#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <sstream>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "data/sources.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kClassOrder = "labels.txt";
constexpr std::array<std::string_view, 11> kExtensions = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff",
                                                          ".bmp", ".ppm",  ".pgm", ".pbm",  ".pnm"};

constexpr std::int64_t kSignOfLife = 1000;  // entries of a folder between two

std::string_view top_folder(std::string_view key) {
  const std::size_t slash = key.find('/');
  return slash == std::string_view::npos ? std::string_view() : key.substr(0, slash);
}

/// Units are folders below the root, written "a/b/"; "" is the root itself.
class FolderScanner final : public Scanner {
 public:
  explicit FolderScanner(fs::path root) : root_(std::move(root)) {}

  /// Opens folders, widest first, until there are enough to share out.
  std::vector<std::string> units(int wanted, IndexRows& rows) override {
    stamp_class_order(root_, rows.stamps);
    std::deque<std::string> closed = {""};
    for (int opened = 0; !closed.empty() && std::ssize(closed) + opened < wanted; ++opened) {
      const std::string unit = std::move(closed.front());
      closed.pop_front();
      std::vector<Identity> above = ancestors(unit);
      list(unit, above, rows, [&](const std::string& folder) { closed.push_back(folder); });
    }
    return {closed.begin(), closed.end()};
  }

  void scan(const std::string& unit, int /*number*/, IndexRows& rows) const override {
    std::vector<Identity> above = ancestors(unit);
    visit(unit, above, rows);
  }

  std::vector<std::string> class_order() const override { return read_class_order(root_); }
  bool expensive() const override { return false; }

 private:
  using Identity = std::pair<dev_t, ino_t>;
  using ClassOfName = std::unordered_map<std::string, std::string>;  // file name without extension

  void visit(const std::string& unit, std::vector<Identity>& above, IndexRows& rows) const {
    list(unit, above, rows, [&](const std::string& folder) { visit(folder, above, rows); });
  }

  /// The images in a folder; shows the folders in it. A link back to one of those `above` is not followed again.
  template <class Show>
  void list(const std::string& unit, std::vector<Identity>& above, IndexRows& rows, Show&& show) const {
    const fs::path folder = root_ / unit;
    const Identity identity = identify(folder);
    if (std::find(above.begin(), above.end(), identity) != above.end()) return;
    above.push_back(identity);
    rows.stamps.push_back(stamp_of(folder));
    std::error_code error;
    fs::directory_iterator entries(folder, error);
    std::optional<ClassOfName> listed;
    for (std::int64_t number = 1; !error && entries != fs::directory_iterator(); entries.increment(error), ++number) {
      if (number % kSignOfLife == 0) alive();
      const std::string name = entries->path().filename().string();
      if (name.front() == '.') continue;
      std::error_code unknown;  // a dangling link is kept as a file, so that it is reported when it is read
      if (entries->is_directory(unknown)) {
        show(unit + name + '/');
      } else if (has_image_extension(entries->path())) {
        if (unit.empty()) {
          if (!listed) listed = read_classes_of_names(rows.stamps);
          const auto found = listed->find(entries->path().stem().string());
          rows.add(name, found == listed->end() ? std::string() : found->second);
        } else {
          rows.add(unit + name, top_folder(unit));
        }
      }
    }
    if (error) fail(folder, error.message());
    alive();
    above.pop_back();
  }

  /// From the lists beside the folder that ImageNet's validation images come with: a name and a number a line, or a
  /// table of names and predictions, whose first word is the class.
  ClassOfName read_classes_of_names(std::vector<Stamp>& stamps) const {
    const std::string name = root_.filename().string();
    ClassOfName classes;
    for (const std::string& list : {name + ".txt", "LOC_" + name + "_solution.csv"}) {
      const fs::path file = root_.parent_path() / list;
      stamps.push_back(stamp_of(file));
      const bool table = file.extension() == ".csv";
      std::istringstream lines(read_list(file));
      for (std::string line; std::getline(lines, line);) {
        std::replace(line.begin(), line.end(), ',', ' ');
        std::istringstream words(line);
        std::string image, class_name, rest;
        if (!(words >> image >> class_name) || (!table && words >> rest)) continue;
        classes[fs::path(image).stem().string()] = class_name;
      }
    }
    return classes;
  }

  std::vector<Identity> ancestors(const std::string& unit) const {
    std::vector<Identity> above;
    for (std::size_t end = 0; end < unit.size(); end = unit.find('/', end) + 1) {
      above.push_back(identify(root_ / unit.substr(0, end)));
    }
    return above;
  }

  static Identity identify(const fs::path& folder) {
    struct stat status {};
    if (::stat(folder.c_str(), &status) != 0) fail(folder, std::strerror(errno));
    return {status.st_dev, status.st_ino};
  }

  [[noreturn]] static void fail(const fs::path& folder, const std::string& reason) {
    throw core::InputError(fmt::format("The image folder {} cannot be read: {}.", folder.string(), reason));
  }

  fs::path root_;
};

}  // namespace

bool has_image_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

std::string image_extensions() {
  return fmt::format("{}", fmt::join(kExtensions, ", "));
}

std::vector<std::string> read_class_order(const fs::path& folder) {
  for (const fs::path& place : {folder, folder.parent_path()}) {
    std::vector<std::string> names;
    std::istringstream lines(read_list(place / kClassOrder));
    for (std::string line; std::getline(lines, line);) {
      std::string name = line.substr(0, line.find_first_of(",\t\r"));
      if (!name.empty()) names.push_back(std::move(name));
    }
    if (!names.empty()) return names;
  }
  return {};
}

void stamp_class_order(const fs::path& folder, std::vector<Stamp>& stamps) {
  for (const fs::path& place : {folder, folder.parent_path()}) stamps.push_back(stamp_of(place / kClassOrder));
}

std::unique_ptr<Scanner> scan_folder(const fs::path& folder) {
  return std::make_unique<FolderScanner>(folder);
}

}  // namespace allosaur::data
