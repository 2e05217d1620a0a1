#include "data/folder.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

bool has_image_extension(const fs::path& path) {
  static constexpr std::array<std::string_view, 11> kExtensions = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff",
                                                                   ".bmp", ".ppm",  ".pgm", ".pbm",  ".pnm"};
  std::string extension = path.extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
  return std::find(kExtensions.begin(), kExtensions.end(), extension) != kExtensions.end();
}

/// Collects image paths relative to a root. A link back to a folder that is being searched is not followed again.
class Scan {
 public:
  static std::vector<std::string> run(const fs::path& root) {
    Scan scan;
    scan.visit(root, "");
    std::sort(scan.paths_.begin(), scan.paths_.end());
    return std::move(scan.paths_);
  }

 private:
  void visit(const fs::path& folder, const std::string& prefix) {
    struct stat status {};
    if (::stat(folder.c_str(), &status) != 0) fail(folder, std::strerror(errno));
    const std::pair<dev_t, ino_t> identity{status.st_dev, status.st_ino};
    if (std::find(open_.begin(), open_.end(), identity) != open_.end()) return;
    open_.push_back(identity);
    std::error_code error;
    fs::directory_iterator entries(folder, error);
    for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
      const std::string name = entries->path().filename().string();
      if (name.front() == '.') continue;
      std::error_code unknown;  // a dangling link is kept as a file, so that it is reported when it is read
      if (entries->is_directory(unknown)) {
        visit(entries->path(), prefix + name + '/');
      } else if (has_image_extension(entries->path())) {
        paths_.push_back(prefix + name);
      }
    }
    if (error) fail(folder, error.message());
    open_.pop_back();
  }

  [[noreturn]] static void fail(const fs::path& folder, const std::string& reason) {
    throw core::InputError(fmt::format("The image folder {} cannot be read: {}.", folder.string(), reason));
  }

  std::vector<std::pair<dev_t, ino_t>> open_;
  std::vector<std::string> paths_;
};

std::string scan_to_text(const fs::path& root) {
  const std::vector<std::string> paths = Scan::run(root);
  if (paths.empty()) {
    throw core::InputError(
        fmt::format("The folder {} holds no image (.jpg, .jpeg, .png, .webp, .tif, .tiff, .bmp, .ppm, .pgm, .pbm, "
                    ".pnm), nor does any folder below it.",
                    root.string()));
  }
  std::string text;
  for (const std::string& path : paths) {
    text += path;
    text += '\0';  // the only byte that no path can contain
  }
  return text;
}

class ImageFolder final : public Dataset {
 public:
  /// `paths`: zero-terminated paths relative to `root`, one after the other.
  ImageFolder(fs::path root, std::string paths, bool labelled) : root_(std::move(root)), paths_(std::move(paths)) {
    for (std::size_t begin = 0; begin < paths_.size(); begin = paths_.find('\0', begin) + 1) begins_.push_back(begin);
    if (labelled) label_by_top_folder();
  }

  std::int64_t size() const override { return static_cast<std::int64_t>(begins_.size()); }
  std::string key(std::int64_t index) const override { return path(index); }
  std::int64_t label(std::int64_t index) const override {
    return labels_.empty() ? -1 : labels_.at(static_cast<std::size_t>(index));
  }
  const std::vector<std::string>& class_names() const override { return class_names_; }

  std::int64_t length(std::int64_t index) const override {
    std::error_code error;
    const std::uintmax_t bytes = fs::file_size(root_ / path(index), error);
    return error ? 0 : static_cast<std::int64_t>(bytes);  // get() says what is wrong with it
  }

  Sample get(std::int64_t index) const override {
    Sample sample;
    sample.key = path(index);
    sample.label = label(index);
    read_file(root_ / sample.key, sample.bytes);
    return sample;
  }

 private:
  const char* path(std::int64_t index) const { return paths_.c_str() + begins_.at(static_cast<std::size_t>(index)); }

  std::string_view top_folder(std::size_t index) const {
    const std::string_view relative = paths_.c_str() + begins_[index];
    const std::size_t slash = relative.find('/');
    return slash == std::string_view::npos ? std::string_view() : relative.substr(0, slash);
  }

  void label_by_top_folder() {
    std::set<std::string, std::less<>> names;
    for (std::size_t i = 0; i < begins_.size(); ++i) {
      const std::string_view name = top_folder(i);
      if (name.empty()) {
        throw core::InputError(
            fmt::format("The image {} of the labelled folder {} is in no class folder. Move every image into a folder "
                        "named after its class.",
                        path(static_cast<std::int64_t>(i)), root_.string()));
      }
      if (names.find(name) == names.end()) names.emplace(name);
    }
    class_names_.assign(names.begin(), names.end());
    labels_.resize(begins_.size());
    for (std::size_t i = 0; i < begins_.size(); ++i) {
      labels_[i] = static_cast<std::int32_t>(std::lower_bound(class_names_.begin(), class_names_.end(), top_folder(i)) -
                                             class_names_.begin());
    }
  }

  static void read_file(const fs::path& file, std::vector<std::byte>& bytes) {
    const auto fail = [&]() {
      throw core::InputError(fmt::format("The image {} cannot be read: {}.", file.string(), std::strerror(errno)));
    };
    struct Descriptor {
      int value;
      ~Descriptor() {
        if (value >= 0) ::close(value);
      }
    } const descriptor{::open(file.c_str(), O_RDONLY | O_CLOEXEC)};
    struct stat status {};
    if (descriptor.value < 0 || ::fstat(descriptor.value, &status) != 0) fail();
    bytes.resize(static_cast<std::size_t>(status.st_size));
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t count = ::read(descriptor.value, bytes.data() + done, bytes.size() - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail();
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    bytes.resize(done);
  }

  fs::path root_;
  std::string paths_;
  std::vector<std::size_t> begins_;
  std::vector<std::int32_t> labels_;  // empty when unlabelled
  std::vector<std::string> class_names_;
};

}  // namespace

std::shared_ptr<const Dataset> open_folder(comm::Communicator& group, const fs::path& folder, bool labelled) {
  std::string paths = comm::on_root(group, [&] { return scan_to_text(folder); });
  return comm::coordinate(group,
                          [&] { return std::make_shared<const ImageFolder>(folder, std::move(paths), labelled); });
}

}  // namespace allosaur::data
