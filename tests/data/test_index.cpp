#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/error.hpp"
#include "data/dataset.hpp"
#include "data/index.hpp"
#include "io/hdf5.hpp"
#include "io/tar.hpp"
#include "pictures.hpp"
#include "testing.hpp"

// What the whole source decides (classes), what is kept of it (indexes, staged files), and when it is made anew.

namespace allosaur {
namespace {

namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

void write_text(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

/// A member of a ustar archive; `link`: a hard link to that name instead of a file.
void add_member(std::string& tar, const std::string& name, std::string_view content, const std::string& link = {}) {
  std::array<char, 512> header{};
  const auto put = [&](std::size_t at, const std::string& text) { std::copy(text.begin(), text.end(), &header[at]); };
  put(0, name);
  put(100, "0000644");
  put(124, fmt::format("{:011o}", content.size()));
  put(136, "00000000000");
  put(148, "        ");
  header[156] = link.empty() ? '0' : '1';
  put(157, link);
  put(257, "ustar");
  put(263, "00");
  unsigned sum = 0;
  for (const char byte : header) sum += static_cast<unsigned char>(byte);
  put(148, fmt::format("{:06o}", sum) + '\0');
  tar.append(header.data(), header.size()).append(content);
  tar.append((512 - content.size() % 512) % 512, '\0');
}

std::string png() {
  const std::vector<std::byte> bytes = io::encode_png(testing::picture(1, 4, 4));
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A shard of `count` images numbered from `first`, with a label member each, as `label` gives it ("" = none).
template <class Label>
std::string shard(int first, int count, const char* extension, Label&& label) {
  std::string tar;
  const std::string image = png();
  for (int i = first; i < first + count; ++i) {
    add_member(tar, fmt::format("{:04}.png", i), image);
    if (const std::string text = label(i); !text.empty()) add_member(tar, fmt::format("{:04}.{}", i, extension), text);
  }
  return tar.append(1024, '\0');
}

auto open(const fs::path& source, data::Labels labels, const data::Places& places = {}) {
  return data::open_dataset(testing::world(), source, labels, places);
}

std::string class_of(const data::Dataset& dataset, std::int64_t row) {
  return dataset.label(row) < 0 ? "-" : dataset.class_names().at(static_cast<std::size_t>(dataset.label(row)));
}

Texts keys_of(const data::Dataset& dataset) {
  Texts keys;
  for (std::int64_t row = 0; row < dataset.size(); ++row) keys.push_back(dataset.key(row));
  return keys;
}

/// A time long past: fresh files could change once more within the clock's tick, so that their stamps never hold.
fs::file_time_type long_ago(int seconds) {
  static const auto begin = fs::file_time_type::clock::now() - std::chrono::hours(1);
  return begin + std::chrono::seconds(seconds);
}

/// Makes everything below look old.
void settle(const fs::path& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder)) fs::last_write_time(entry, long_ago(0));
  fs::last_write_time(folder, long_ago(0));
}

/// Opens a source again and again, and tells how.
struct Opener {
  fs::path source;
  data::Places places{};
  std::int64_t found = 0;
  std::string warning{};
  bool scanned = false;

  explicit Opener(fs::path its_source, fs::path cache) : source(std::move(its_source)) {
    places.cache = std::move(cache);
    places.kept_from = 1;
    places.warn = [this](const std::string& text) { warning = text; };
    places.progress = [this](std::int64_t images) { scanned = scanned || images > 0; };
  }
  Opener(const Opener&) = delete;
  Opener& operator=(const Opener&) = delete;

  /// Collective. Whether any rank had to scan.
  bool operator()() {
    scanned = false;
    found = open(source, data::Labels::ignored, places)->size();
    return testing::world().max(scanned ? 1 : 0) > 0;
  }
};

}  // namespace

TEST_CASE("many classes, few images a shard: labels are kept") {
  for (const char* extension : {"cls", "json", "txt"}) {
    CAPTURE(extension);
    const testing::TemporaryDirectory directory;
    const bool json = std::string(extension) == "json";
    const auto label = [&](int i) { return json ? fmt::format("{{\"label\": {}}}", i % 30) : std::to_string(i % 30); };
    testing::on_first_rank([&] {
      for (int i = 0; i < 4; ++i) {
        write_text(directory.path() / fmt::format("{}.tar", i), shard(25 * i, 25, extension, label));
      }
      // A shard without labels among labelled ones has no classes, not those of its name.
      write_text(directory.path() / "9.tar", shard(100, 2, extension, [](int) { return std::string(); }));
    });
    const auto dataset = open(directory.path(), data::Labels::where_known);
    REQUIRE(dataset->size() == 102);
    CHECK(dataset->class_names().size() == 30);
    for (std::int64_t row = 0; row < 100; ++row) CHECK(class_of(*dataset, row) == std::to_string(row % 30));
    CHECK(class_of(*dataset, 100) == "-");
  }
}

TEST_CASE("captions are no classes, and a class beats a caption") {
  const testing::TemporaryDirectory directory;
  const auto caption = [](int i) { return i % 5 == 0 ? std::string(300, 'x') : fmt::format("a picture of {}", i); };
  testing::on_first_rank([&] {
    write_text(directory.path() / "captions/0.tar", shard(0, 15, "txt", caption));
    write_text(directory.path() / "captions/1.tar", shard(15, 15, "txt", caption));
    std::string both;
    for (int i = 0; i < 30; ++i) {
      add_member(both, fmt::format("{}.cls", i), std::to_string(i % 2));
      add_member(both, fmt::format("{}.json", i), R"({"label": 7})");
      add_member(both, fmt::format("{}.png", i), png());
      add_member(both, fmt::format("{}.txt", i), caption(i));
    }
    write_text(directory.path() / "both.tar", both.append(1024, '\0'));
  });
  const auto captions = open(directory.path() / "captions", data::Labels::where_known);
  CHECK(captions->size() == 30);
  CHECK(captions->class_names().empty());
  CHECK_THROWS_WITH_AS(open(directory.path() / "captions", data::Labels::required), doctest::Contains("has no classes"),
                       core::InputError);
  const auto both = open(directory.path() / "both.tar", data::Labels::required);
  CHECK(both->class_names() == Texts{"0", "1"});
  CHECK(both->label(3) == 1);
}

TEST_CASE("members of a tar that are left out are listed; bad labels only where labels are asked for") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] {
    std::string tar;
    add_member(tar, "a.png", png());
    add_member(tar, "b.png", "", "a.png");
    add_member(tar, "notes", "", "a.png");
    add_member(tar, "a.json", "{broken");
    write_text(directory.path() / "x.tar", tar.append(1024, '\0'));
  });
  const auto problems = [&](data::Labels labels) { return open(directory.path() / "x.tar", labels)->problems(); };
  REQUIRE(problems(data::Labels::ignored).size() == 1);
  CHECK(problems(data::Labels::ignored)[0].key == "x.tar/b.png");
  CHECK(problems(data::Labels::ignored)[0].reason.find("It is a link") != std::string::npos);
  REQUIRE(problems(data::Labels::where_known).size() == 2);
  CHECK(problems(data::Labels::where_known)[1].key == "x.tar/a.json");
}

TEST_CASE("lists: a mark of UTF-8, a class behind the path, a bad label") {
  const testing::TemporaryDirectory directory;
  const fs::path root = directory.path();
  testing::on_first_rank([&] {
    write_text(root / "marked.csv", "\xEF\xBB\xBFpath,label\na.png,cat\n");
    write_text(root / "classes.txt", "a.png 65\nb c.png\ta dog.png\nb c.JPEG 9\nplain file\n");
    write_text(root / "labels.json", R"([{"path": "a.png", "label": 0.5}, ["b.png", 3]])");
  });
  const auto marked = open(root / "marked.csv", data::Labels::required);
  CHECK(keys_of(*marked) == Texts{"a.png"});
  CHECK(class_of(*marked, 0) == "cat");
  const auto classes = open(root / "classes.txt", data::Labels::where_known);
  CHECK(keys_of(*classes) == Texts{"a.png", "b c.JPEG", "b c.png\ta dog.png", "plain file"});
  CHECK(class_of(*classes, 0) == "65");
  CHECK(class_of(*classes, 1) == "9");
  CHECK(class_of(*classes, 2) == "-");
  CHECK(open(root / "labels.json", data::Labels::ignored)->problems().empty());
  const auto labels = open(root / "labels.json", data::Labels::where_known);
  CHECK(labels->size() == 2);
  REQUIRE(labels->problems().size() == 1);
  CHECK(labels->problems()[0].reason.find("The label is not used") != std::string::npos);
}

TEST_CASE("ImageNet's flat folder of validation images takes its classes from the list beside it") {
  const testing::TemporaryDirectory directory;
  const fs::path root = directory.path();
  testing::on_first_rank([&] {
    for (const char* folder : {"caffe/val", "kaggle/val"}) testing::write_pictures(root / folder, 2);
    write_text(root / "caffe/val.txt", "00.jpg 65\n01.jpg 3\n");
    write_text(root / "kaggle/LOC_val_solution.csv",
               "ImageId,PredictionString\n01,n01 85 1 499 272 n02 3 4 5 6\n00,n02 1 2 3 4\n");
    write_text(root / "kaggle/labels.txt", "\xEF\xBB\xBFn02 ray, stingray\nn01 tench\n");
  });
  const auto caffe = open(root / "caffe/val", data::Labels::required);
  CHECK(caffe->label(0) == 65);
  CHECK(caffe->label(1) == 3);
  const auto kaggle = open(root / "kaggle/val", data::Labels::required);
  CHECK(kaggle->class_names() == Texts{"n02", "n01"});
  CHECK(kaggle->label(0) == 0);
  CHECK(kaggle->label(1) == 1);
}

TEST_CASE("a kept index of a folder is made anew for every change in it, however deep") {
  const testing::TemporaryDirectory directory, cache;
  const fs::path root = directory.path() / "set";
  testing::on_first_rank([&] {
    testing::write_pictures(root / "a/deep/er", 3);
    testing::write_pictures(root / "b", 2);
    settle(directory.path());
  });
  Opener opened(root, cache.path());
  CHECK(opened());
  CHECK(!opened());
  CHECK(opened.found == 5);
  int changes = 0;
  const auto after = [&](const auto& change) {
    testing::on_first_rank([&] {
      change();
      fs::last_write_time(root / "a/deep/er", long_ago(++changes));
    });
    const bool again = opened();
    CHECK(!opened());
    return again;
  };
  CHECK(after([&] { testing::write_pictures(root / "a/deep/er", 4); }));
  CHECK(opened.found == 6);
  CHECK(after([&] { fs::remove(root / "a/deep/er/03.jpg"); }));
  CHECK(opened.found == 5);
  CHECK(after([&] { fs::rename(root / "a/deep/er/00.jpg", root / "a/deep/er/09.jpg"); }));
  CHECK(open(root, data::Labels::ignored, opened.places)->key(0) == "a/deep/er/01.jpg");

  // labels.txt, here or above, is part of it, though it is absent at first.
  testing::on_first_rank([&] {
    write_text(directory.path() / "labels.txt", "b\na\n");
    fs::last_write_time(directory.path() / "labels.txt", long_ago(0));
  });
  CHECK(opened());
  CHECK(open(root, data::Labels::required, opened.places)->class_names() == Texts{"b", "a"});
}

TEST_CASE("a kept index of a list is made anew when the list changes") {
  const testing::TemporaryDirectory directory, cache;
  const fs::path list = directory.path() / "list.txt";
  testing::on_first_rank([&] {
    write_text(list, "a.png\n");
    settle(directory.path());
  });
  Opener opened(list, cache.path());
  CHECK(opened());
  CHECK(!opened());
  testing::on_first_rank([&] {
    write_text(list, "a.png\nb.png\n");
    settle(directory.path());
  });
  CHECK(opened());
  CHECK(opened.found == 2);
}

TEST_CASE("a shard that could not be read is tried again by the next job") {
  const testing::TemporaryDirectory directory, cache;
  testing::on_first_rank([&] {
    write_text(directory.path() / "0.tar", shard(0, 3, "cls", [](int) { return "1"; }));
    fs::create_directory(directory.path() / "1.tar");  // reading it fails for root, too
    settle(directory.path());
  });
  Opener opened(directory.path(), cache.path());
  CHECK(opened());
  CHECK(opened.found == 3);
  const auto problems = open(directory.path(), data::Labels::ignored, opened.places)->problems();
  REQUIRE(problems.size() == 1);
  CHECK(problems[0].reason.find("cannot be read") != std::string::npos);
  CHECK(opened());
  testing::on_first_rank([&] {
    fs::remove(directory.path() / "1.tar");
    settle(directory.path());
  });
  CHECK(opened());
  CHECK(!opened());
}

TEST_CASE("an index that another job reads is never changed; forgotten ones go") {
  const testing::TemporaryDirectory directory, cache;
  const fs::path list = directory.path() / "list.txt";
  const auto kept = [&] {
    std::map<std::string, fs::file_time_type> files;
    for (const auto& file : fs::directory_iterator(cache.path()))
      files[file.path().filename()] = fs::last_write_time(file);
    testing::world().barrier();
    return files;
  };
  testing::on_first_rank([&] { write_text(list, "a.png\n"); });
  Opener opened(list, cache.path());
  opened();
  const auto first = open(list, data::Labels::ignored, opened.places);
  const auto before = kept();
  testing::on_first_rank([&] {
    write_text(list, "b.png\nc.png\n");
    settle(directory.path());
  });
  CHECK(opened());
  CHECK(first->key(0) == "a.png");
  const auto after = kept();
  CHECK(after.size() == before.size() + 1);
  for (const auto& [file, time] : before) CHECK(after.at(file) == time);

  testing::on_first_rank([&] {
    for (const auto& [file, time] : before)
      fs::last_write_time(cache.path() / file, fs::file_time_type::clock::now() - std::chrono::hours(24 * 31));
    write_text(list, "d.png\n");
    settle(directory.path());
  });
  CHECK(opened());
  CHECK(kept().size() == 2);
}

TEST_CASE("where no index can be kept, the source is used without, with a warning") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] {
    write_text(directory.path() / "list.txt", "a.png\nb.png\n");
    write_text(directory.path() / "file", "in the way of a folder");
  });
  Opener opened(directory.path() / "list.txt", directory.path() / "file/cache");
  CHECK(opened());
  CHECK(opened.found == 2);
  CHECK((opened.warning.find("data.index_cache") != std::string::npos) == (testing::world().rank() == 0));
}

TEST_CASE("labels and keys of a damaged index are refused") {
  const testing::TemporaryDirectory directory;
  const fs::path file = directory.path() / fmt::format("{}.h5", testing::world().rank());
  data::IndexRows rows;
  rows.add("a.png", "cat");
  rows.number_classes({});
  data::Index::write(rows, file);
  CHECK(data::Index(file).label(0) == 0);
  for (const char* column : {"label", "key_end"}) {
    std::vector<std::byte> bytes = testing::read_file(file);
    const std::int64_t place = io::hdf5::File(file, io::hdf5::Access::read).root().dataset(column).file_offset();
    bytes[static_cast<std::size_t>(place) + 1] = std::byte{1};  // 256 more
    testing::write_file(file, bytes);
    const data::Index index(file);
    const auto read = [&] { return column[0] == 'l' ? index.label(0) : std::ssize(index.key(0)); };
    CHECK_THROWS_WITH_AS(read(), doctest::Contains("index of the images is damaged"), core::StorageError);
  }
}

TEST_CASE("staged shards are used again, copied anew when they change, and refused without room") {
  const testing::TemporaryDirectory directory, stage;
  const auto label = [](int) { return "1"; };
  testing::on_first_rank([&] {
    write_text(directory.path() / "0.tar", shard(0, 3, "cls", label));
    settle(directory.path());
  });
  int copies = 0;
  const data::Places places{{}, stage.path(), [&](std::int64_t) { ++copies; }};
  const auto staged = [&] {
    copies = 0;
    const auto dataset = open(directory.path(), data::Labels::required, places);
    CHECK_NOTHROW(dataset->get(dataset->size() - 1));
    return testing::world().sum(std::int64_t{copies}) - 1;  // the scan gives one sign of life
  };
  CHECK(staged() == 1);
  CHECK(staged() == 0);
  testing::on_first_rank([&] {
    write_text(directory.path() / "0.tar", shard(0, 5, "cls", label));
    settle(directory.path());
  });
  CHECK(staged() == 1);
  std::size_t files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(stage.path())) files += entry.is_regular_file();
  CHECK(files == 1);  // nothing temporary stays
  const fs::path copy = fs::recursive_directory_iterator(stage.path())->path() / "0.tar.0123456789abcdef.tmp";
  testing::on_first_rank([&] {
    write_text(copy, "of a job that was killed");
    fs::last_write_time(copy, long_ago(-3600));
  });
  staged();
  CHECK(!fs::exists(copy));
  testing::on_first_rank([&] { fs::resize_file(directory.path() / "0.tar", std::uintmax_t{1} << 42); });
  CHECK_THROWS_WITH_AS(data::open_dataset(testing::world(), directory.path(), data::Labels::ignored, places),
                       doctest::Contains("which has room for"), core::StorageError);
}

TEST_CASE("a file too large for an image is refused before memory is taken") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] {
    write_text(directory.path() / "huge.jpg", "");
    fs::resize_file(directory.path() / "huge.jpg", io::kMaxMember + 1);
  });
  const auto dataset = open(directory.path(), data::Labels::ignored);
  CHECK_THROWS_WITH_AS(dataset->get(0), doctest::Contains("has 1073741825 bytes, more than the 1073741824"),
                       core::InputError);
}

}  // namespace allosaur
