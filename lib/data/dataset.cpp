#include "data/dataset.hpp"

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "data/containers.hpp"
#include "data/packed.hpp"
#include "data/sources.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

class Subset final : public Dataset {
 public:
  Subset(std::shared_ptr<const Dataset> dataset, std::vector<std::int64_t> indices, std::vector<Rejected> problems = {})
      : dataset_(std::move(dataset)), indices_(std::move(indices)), problems_(std::move(problems)) {}

  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  Sample get(std::int64_t index) const override { return dataset_->get(at(index)); }
  void read(std::int64_t index, Sample& into) const override { dataset_->read(at(index), into); }
  std::int64_t label(std::int64_t index) const override { return dataset_->label(at(index)); }
  std::string key(std::int64_t index) const override { return dataset_->key(at(index)); }
  std::int64_t length(std::int64_t index) const override { return dataset_->length(at(index)); }
  const std::vector<std::string>& class_names() const override { return dataset_->class_names(); }
  std::vector<Rejected> problems() const override { return problems_; }

 private:
  std::int64_t at(std::int64_t index) const { return indices_.at(static_cast<std::size_t>(index)); }

  std::shared_ptr<const Dataset> dataset_;
  std::vector<std::int64_t> indices_;
  std::vector<Rejected> problems_;
};

[[noreturn]] void refuse(const fs::path& source, const std::string& what) {
  throw core::InputError(fmt::format("The image source {} {}.", source.string(), what));
}

bool is_tar(const fs::path& file) {
  return file.extension() == ".tar";
}

/// "a-{08..11}.tar" -> a-08.tar, a-09.tar, a-10.tar, a-11.tar; nothing when there is no such range.
std::vector<fs::path> expand_braces(std::string_view pattern) {
  const std::size_t open = pattern.find('{'), dots = pattern.find("..", std::min(open, pattern.size())),
                    close = pattern.find('}', std::min(dots, pattern.size()));
  if (close == std::string_view::npos) return {};
  const std::string_view first = pattern.substr(open + 1, dots - open - 1),
                         last = pattern.substr(dots + 2, close - dots - 2);
  std::int64_t begin = 0, end = 0;
  const auto is_number = [](std::string_view text, std::int64_t& value) {
    const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && rest == text.data() + text.size() && text.size() < 10 && value >= 0;
  };
  if (!is_number(first, begin) || !is_number(last, end)) return {};
  std::vector<fs::path> files;
  for (std::int64_t number = begin; number <= end; ++number) {
    files.emplace_back(
        fmt::format("{}{:0{}}{}", pattern.substr(0, open), number, first.size(), pattern.substr(close + 1)));
  }
  return files;
}

/// What a source is, and the files that this is about: a packed index, tar shards in order, or the source itself.
struct Kind {
  enum : char { folder = 'f', packed = 'p', tars = 't', list = 'l' } kind;
  std::vector<fs::path> files;
};

Kind recognise_folder(const fs::path& folder) {
  std::error_code error;
  if (fs::exists(folder / kPackedIndexName, error)) return {Kind::packed, {folder / kPackedIndexName}};
  std::vector<fs::path> shards;
  bool images = false;  // then a tar beside them is what they were unpacked from
  for (fs::directory_iterator entries(folder, error); !error && entries != fs::directory_iterator();
       entries.increment(error)) {
    images = images || has_image_extension(entries->path());
    if (is_tar(entries->path()) && !entries->path().filename().string().starts_with('.')) {
      shards.push_back(entries->path());
    }
  }
  if (error) refuse(folder, "cannot be read: " + error.message());
  if (shards.empty() || images) return {Kind::folder, {folder}};
  std::sort(shards.begin(), shards.end());
  return {Kind::tars, shards};
}

Kind recognise(const fs::path& source) {
  std::vector<fs::path> shards = expand_braces(source.string());
  if (!shards.empty()) {
    for (const fs::path& shard : shards) {
      if (!fs::exists(shard)) refuse(source, fmt::format("names {}, which does not exist", shard.string()));
    }
    return {Kind::tars, std::move(shards)};
  }
  std::error_code error;
  const fs::file_status status = fs::status(source, error);
  if (status.type() == fs::file_type::not_found) refuse(source, "does not exist");
  if (error) refuse(source, "cannot be read: " + error.message());
  if (fs::is_directory(status)) return recognise_folder(source);
  if (source.extension() == ".h5") return {Kind::packed, {source}};
  if (is_tar(source)) return {Kind::tars, {source}};
  if (is_list(source)) return {Kind::list, {source}};
  refuse(
      source,
      "is neither a folder, nor a tar file (.tar), nor a list (.txt, .csv, .tsv, .json, .jsonl), nor the index (.h5) "
      "of packed images");
}

/// Collective. What recognise() finds on rank 0.
Kind recognise(comm::Communicator& group, const fs::path& source) {
  const std::string text = comm::on_root(group, [&] {
    const Kind found = recognise(source);
    std::string result(1, found.kind);
    for (const fs::path& file : found.files) result += file.string() + '\0';
    return result;
  });
  Kind kind{static_cast<decltype(Kind::kind)>(text[0]), {}};
  for (std::size_t begin = 1; begin < text.size(); begin = text.find('\0', begin) + 1) {
    kind.files.push_back(fs::absolute(text.c_str() + begin));
  }
  return kind;
}

/// The images with a class; the others become problems.
std::shared_ptr<const Dataset> with_class(std::shared_ptr<const Dataset> dataset, const fs::path& source) {
  std::vector<std::int64_t> rows;
  std::vector<Rejected> problems = dataset->problems();
  for (std::int64_t row = 0; row < dataset->size(); ++row) {
    if (dataset->label(row) >= 0) {
      rows.push_back(row);
    } else {
      problems.push_back({dataset->key(row), "It has no class."});
    }
  }
  if (rows.empty())
    refuse(source, "has no classes, which are needed here (packed images have them with --pack.labelled=true)");
  if (std::ssize(rows) == dataset->size()) return dataset;
  return std::make_shared<const Subset>(std::move(dataset), std::move(rows), std::move(problems));
}

/// Every image of a labelled folder is in a class folder.
void check_classes(const Dataset& folder, const fs::path& source) {
  for (std::int64_t row = 0; row < folder.size(); ++row) {
    if (folder.label(row) >= 0) continue;
    throw core::InputError(
        fmt::format("The image {} of the labelled folder {} is in no class folder. Move every image into a folder "
                    "named after its class, or give a list of the images with their classes as the source.",
                    folder.key(row), source.string()));
  }
}

std::unique_ptr<Scanner> make_scanner(const Kind& kind, const fs::path& source) {
  switch (kind.kind) {
    case Kind::folder:
      return scan_folder(source);
    case Kind::packed:
      return scan_packed(kind.files.front());
    case Kind::tars:
      return scan_tars(kind.files);
    case Kind::list:
      return scan_list(source);
  }
  throw std::logic_error("make_scanner: unknown kind of source");
}

std::string nothing_in(const Kind& kind) {
  switch (kind.kind) {
    case Kind::folder:
      return fmt::format("holds no image ({}), nor does any folder below it", image_extensions());
    case Kind::tars:
      return fmt::format("holds no image ({}) in its tar files", image_extensions());
    default:
      return "holds no image";
  }
}

}  // namespace

std::shared_ptr<const Dataset> open_dataset(comm::Communicator& group, const fs::path& source, Labels labels,
                                            const Places& places) {
  const Kind kind = recognise(group, source);
  // An index outlives this process and its working folder.
  fs::path home = fs::absolute(source);
  if (!home.has_filename()) home = home.parent_path();  // a/b/
  const std::unique_ptr<Scanner> scanner = make_scanner(kind, home);
  const auto index = open_index(group, home, *scanner, places);
  comm::coordinate(group, [&] {
    if (index->size() > 0) return;
    throw core::InputError(fmt::format("The image source {} {}.{}", source.string(), nothing_in(kind),
                                       index->problems().empty() ? "" : " " + index->problems().front().reason));
  });
  std::vector<std::string> containers = index->containers();
  if (!places.stage.empty() && !containers.empty()) containers = stage(group, containers, places);
  auto images =
      indexed_images(index, kind.kind == Kind::list ? home.parent_path() : home, containers, labels != Labels::ignored);
  if (labels != Labels::required) return images;
  return comm::coordinate(group, [&] {
    if (kind.kind == Kind::folder) check_classes(*images, source);
    return with_class(std::move(images), source);
  });
}

std::shared_ptr<const Dataset> subset(std::shared_ptr<const Dataset> dataset, std::vector<std::int64_t> indices) {
  return std::make_shared<Subset>(std::move(dataset), std::move(indices));
}

}  // namespace allosaur::data
