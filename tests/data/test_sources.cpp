#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include <fmt/format.h>

#include "core/error.hpp"
#include "data/dataset.hpp"
#include "data/index.hpp"
#include "data/joined.hpp"
#include "data/sampler.hpp"
#include "data/sources.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

namespace fs = std::filesystem;

fs::path tar(const std::string& name) {
  return testing::data_directory() / "data/tar" / name;
}

void write_text(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary) << text;
}

/// An image as the fixtures identify it: by its width.
int width_of(const data::Dataset& dataset, std::int64_t index) {
  return io::decode_image(dataset.get(index).bytes).width;
}

/// "key class width" of every image.
std::vector<std::string> described(const data::Dataset& dataset) {
  std::vector<std::string> all;
  for (std::int64_t i = 0; i < dataset.size(); ++i) {
    const std::int64_t label = dataset.label(i);
    all.push_back(dataset.key(i) + " " + (label < 0 ? "-" : dataset.class_names().at(static_cast<std::size_t>(label))) +
                  " " + std::to_string(width_of(dataset, i)));
  }
  return all;
}

using Texts = std::vector<std::string>;

/// Collective. The shards copied into a folder of their own, opened.
std::shared_ptr<const data::Dataset> open_tars(const testing::TemporaryDirectory& directory, const Texts& names,
                                               data::Labels labels, const data::Places& places = {}) {
  testing::on_first_rank([&] {
    for (const std::string& name : names) fs::copy(tar(name), directory.path() / name);
  });
  return data::open_dataset(testing::world(), directory.path(), labels, places);
}

}  // namespace

TEST_CASE("WebDataset shards, in the order of their names") {
  const testing::TemporaryDirectory directory;
  const auto labelled = open_tars(directory, {"ustar-000.tar", "ustar-001.tar"}, data::Labels::required);
  CHECK(described(*labelled) ==
        Texts{"ustar-000.tar/a.png 3 5", "ustar-000.tar/b.png 10 6", "ustar-001.tar/../../up/c.png 0 7"});
  CHECK(labelled->class_names().size() == 11);  // classes that are numbers keep them
  CHECK(labelled->label(1) == 10);
  REQUIRE(labelled->problems().size() == 3);
  CHECK(labelled->problems()[0].key == "ustar-000.tar/link.png");
  CHECK(labelled->problems()[1].key == "ustar-001.tar//absolute/d.cls");
  CHECK(labelled->problems()[2].key == "ustar-001.tar//absolute/d.v1.png");

  const auto unlabelled =
      data::open_dataset(testing::world(), directory.path() / "ustar-{000..001}.tar", data::Labels::ignored);
  CHECK(unlabelled->size() == 4);
  CHECK(unlabelled->label(0) == -1);
  CHECK(width_of(*unlabelled, 3) == 8);
  CHECK_THROWS_WITH_AS(
      data::open_dataset(testing::world(), directory.path() / "ustar-{000..002}.tar", data::Labels::ignored),
      doctest::Contains("ustar-002.tar"), core::Error);
}

TEST_CASE("long names of GNU and pax archives, and classes in JSON") {
  const testing::TemporaryDirectory directory;
  const auto dataset = open_tars(directory, {"gnu.tar", "pax.tar"}, data::Labels::required);
  std::string folder;
  for (int i = 0; i < 20; ++i) folder += "folder/";
  CHECK(described(*dataset) ==
        Texts{"gnu.tar/" + folder + "sample.png tench 9", "pax.tar/" + folder + "sample-\u00e9.png ray 10"});
  CHECK(dataset->class_names() == Texts{"ray", "tench"});
  REQUIRE(dataset->problems().size() == 2);
  CHECK(dataset->problems()[0].reason.find("not JSON") != std::string::npos);
}

TEST_CASE("a tar a class, with members that are gzip files (ImageNet-22k)") {
  const testing::TemporaryDirectory directory;
  const auto dataset = open_tars(directory, {"n02.tar", "n01.tar"}, data::Labels::required);
  CHECK(described(*dataset) ==
        Texts{"n01.tar/n01_1.png n01 14", "n02.tar/n02_1.png n02 12", "n02.tar/n02_2.png n02 13"});
}

TEST_CASE("a tar of class folders") {
  const auto dataset = data::open_dataset(testing::world(), tar("folders.tar"), data::Labels::required);
  CHECK(described(*dataset) ==
        Texts{"folders.tar/./cat/1.png cat 15", "folders.tar/dog/deep/2.png dog 16", "folders.tar/3.png folders 17"});
}

TEST_CASE("what precedes the damage of a tar is used, and the damage is listed") {
  for (const char* name : {"truncated.tar", "checksum.tar"}) {
    CAPTURE(name);
    const auto dataset = data::open_dataset(testing::world(), tar(name), data::Labels::ignored);
    CHECK(described(*dataset) == Texts{std::string(name) + "/a.png - 5"});
    REQUIRE(dataset->problems().size() == 1);
    CHECK(dataset->problems()[0].key == tar(name).string());
    CHECK(dataset->problems()[0].reason.find("damaged") != std::string::npos);
  }
}

TEST_CASE("tars that cannot be used at all are named") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] {
    write_text(directory.path() / "zip.tar", std::string("\x1F\x8B\x08") + std::string(600, 'x'));
    write_text(directory.path() / "text.tar", std::string(2000, 'x'));
    write_text(directory.path() / "empty.tar", "");
  });
  const auto error = [&](const char* name) {
    try {
      data::open_dataset(testing::world(), directory.path() / name, data::Labels::ignored);
    } catch (const core::Error& failure) {
      return std::string(failure.what());
    }
    return std::string();
  };
  CHECK(error("zip.tar").find("compressed with gzip") != std::string::npos);
  CHECK(error("text.tar").find("text.tar cannot be read: Unrecognized archive format") != std::string::npos);
  CHECK(error("empty.tar").find("holds no image") != std::string::npos);
}

TEST_CASE("an index is kept, used again, and made anew when its source changes") {
  const testing::TemporaryDirectory directory;
  const testing::TemporaryDirectory cache;
  int scans = 0;
  const data::Places places{cache.path(), {}, [&](std::int64_t images) { scans += images > 0; }};
  const auto shards = [&] {
    scans = 0;
    const auto dataset = data::open_dataset(testing::world(), directory.path(), data::Labels::ignored, places);
    return std::pair(dataset->size(), testing::world().sum(std::int64_t{scans}));
  };
  using Result = std::pair<std::int64_t, std::int64_t>;
  const auto old = fs::file_time_type::clock::now() - std::chrono::hours(1);
  const auto settle = [&](const Texts& names) {  // fresh files could change once more within the clock's tick
    testing::on_first_rank([&] {
      for (const std::string& name : names) fs::last_write_time(directory.path() / name, old);
      fs::last_write_time(directory.path(), old);
    });
  };
  testing::on_first_rank([&] { fs::copy(tar("ustar-000.tar"), directory.path() / "ustar-000.tar"); });
  CHECK(shards() == Result{2, 1});
  CHECK(shards() == Result{2, 1});  // too fresh to be trusted
  settle({"ustar-000.tar"});
  CHECK(shards() == Result{2, 1});
  CHECK(shards() == Result{2, 0});
  testing::on_first_rank([&] { fs::copy(tar("n01.tar"), directory.path() / "n01.tar"); });
  settle({"n01.tar"});
  testing::on_first_rank([&] { fs::last_write_time(directory.path(), old + std::chrono::seconds(5)); });
  CHECK(shards() == Result{3, 2});
  CHECK(shards() == Result{3, 0});
  testing::on_first_rank(
      [&] { fs::copy(tar("n02.tar"), directory.path() / "n01.tar", fs::copy_options::overwrite_existing); });
  CHECK(shards() == Result{4, 2});

  // A damaged index is made anew as well.
  settle({"n01.tar"});
  shards();
  testing::on_first_rank([&] {
    for (const auto& file : fs::directory_iterator(cache.path())) fs::resize_file(file, 700);
  });
  CHECK(shards() == Result{4, 2});
}

TEST_CASE("an index read from its file equals the one in memory") {
  const testing::TemporaryDirectory directory;
  const testing::TemporaryDirectory cache;
  const auto memory = open_tars(directory, {"ustar-000.tar", "ustar-001.tar"}, data::Labels::required);
  const auto mapped =
      data::open_dataset(testing::world(), directory.path(), data::Labels::required, {cache.path(), {}, {}});
  CHECK(described(*memory) == described(*mapped));
  CHECK(memory->problems().size() == mapped->problems().size());
  CHECK(memory->length(1) == mapped->length(1));
}

TEST_CASE("bytes that changed after indexing are an error naming the image") {
  const testing::TemporaryDirectory directory;
  const auto dataset = open_tars(directory, {"n01.tar"}, data::Labels::ignored);
  testing::on_first_rank([&] {
    std::fstream file(directory.path() / "n01.tar", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(512 + 30);
    file.put('x');
  });
  CHECK_THROWS_WITH_AS(dataset->get(0), doctest::Contains("n01.tar/n01_1.png"), core::InputError);
  testing::world().barrier();
  testing::on_first_rank([&] { fs::resize_file(directory.path() / "n01.tar", 520); });
  CHECK_THROWS_WITH_AS(dataset->get(0), doctest::Contains("ends before n01.tar/n01_1.png"), core::InputError);
}

TEST_CASE("staged shards are read where they were copied to") {
  const testing::TemporaryDirectory directory;
  const testing::TemporaryDirectory stage;
  const data::Places places{{}, stage.path() / "staged", {}};
  const auto dataset = open_tars(directory, {"ustar-000.tar", "n01.tar"}, data::Labels::ignored, places);
  testing::on_first_rank([&] {
    for (const auto& entry : fs::directory_iterator(directory.path())) fs::resize_file(entry, 0);
  });
  CHECK(width_of(*dataset, 0) == 14);
  CHECK(width_of(*dataset, 1) == 5);
}

TEST_CASE("lists of images with classes") {
  const testing::TemporaryDirectory directory;
  const fs::path root = directory.path();
  testing::on_first_rank([&] {
    for (const char* name : {"x/1.png", "x/2,b.png", "3"}) {
      testing::write_file(root / name, io::encode_png(testing::picture(1, 4, 4)));
    }
    write_text(root / "list.txt", "x/1.png\r\n\n3\n");
    write_text(root / "plain.csv", "x/1.png,cat\n\"x/2,b.png\",dog\n3\n,cat\n\"open,dog\n");
    write_text(root / "named.csv", "label,size,path\n7,1,x/1.png\n2,1,3\n");
    write_text(root / "pairs.json", R"({"labels": [["x/1.png", 4], ["3", null], 5]})");
    write_text(root / "objects.json", R"([{"file_name": "x/1.png", "class": "cat"}, {"nothing": 1}, "3"])");
    write_text(root / "lines.jsonl", "{\"image\": \"3\", \"label\": \"dog\"}\n{broken\n");
    write_text(root / "broken.json", "[1,");
  });
  const auto open = [&](const char* name, data::Labels labels) {
    return data::open_dataset(testing::world(), root / name, labels);
  };
  CHECK(described(*open("list.txt", data::Labels::ignored)) == Texts{"3 - 4", "x/1.png - 4"});
  const auto csv = open("plain.csv", data::Labels::required);
  CHECK(described(*csv) == Texts{"x/1.png cat 4", "x/2,b.png dog 4"});
  CHECK(csv->problems().size() == 3);
  CHECK(open("plain.csv", data::Labels::ignored)->size() == 3);
  CHECK(described(*open("named.csv", data::Labels::required)) == Texts{"3 2 4", "x/1.png 7 4"});
  CHECK(described(*open("pairs.json", data::Labels::required)) == Texts{"x/1.png 4 4"});
  CHECK(open("pairs.json", data::Labels::required)->problems().size() == 2);
  CHECK(described(*open("objects.json", data::Labels::required)) == Texts{"x/1.png cat 4"});
  CHECK(open("objects.json", data::Labels::ignored)->size() == 2);
  CHECK(described(*open("lines.jsonl", data::Labels::required)) == Texts{"3 dog 4"});
  CHECK_THROWS_WITH_AS(open("list.txt", data::Labels::required), doctest::Contains("has no classes"), core::Error);
  CHECK_THROWS_WITH_AS(open("broken.json", data::Labels::ignored), doctest::Contains("broken.json"), core::Error);
}

TEST_CASE("a source may be named from the working folder") {
  const testing::TemporaryDirectory directory;
  const testing::TemporaryDirectory cache;
  testing::on_first_rank([&] {
    fs::copy(tar("n01.tar"), directory.path() / "n01.tar");
    testing::write_pictures(directory.path() / "images/cat", 1);
    write_text(directory.path() / "list.csv", "images/cat/00.jpg,cat\n");
  });
  const fs::path before = fs::current_path();
  fs::current_path(directory.path());
  for (const char* source : {"n01.tar", "images", "images/", "list.csv", "n0{1..1}.tar", "."}) {
    CAPTURE(source);
    const auto open = [&] {
      return data::open_dataset(testing::world(), source, data::Labels::required, {cache.path(), {}, {}});
    };
    const auto dataset = open();
    REQUIRE(dataset->size() == 1);
    fs::current_path("/");  // what was opened stays readable
    CHECK(width_of(*dataset, 0) > 0);
    fs::current_path(directory.path());
  }
  fs::current_path(before);
}

TEST_CASE("labels.txt fixes the order of classes (ImageNet)") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] {
    testing::write_pictures(directory.path() / "train/n2", 1);
    testing::write_pictures(directory.path() / "train/n1", 1);
    testing::write_pictures(directory.path() / "val/n1", 1);
    write_text(directory.path() / "labels.txt", "n2,ray\nn1,tench\n");
  });
  const auto train = data::open_dataset(testing::world(), directory.path() / "train", data::Labels::required);
  const auto val = data::open_dataset(testing::world(), directory.path() / "val", data::Labels::required);
  CHECK(train->class_names() == Texts{"n2", "n1"});
  CHECK(val->class_names() == train->class_names());
  CHECK(val->label(0) == 1);
}

TEST_CASE("joined sets keep their keys apart and share their classes") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] {
    for (const char* folder : {"a/cat", "a/dog", "b/cow", "b/dog"}) {
      testing::write_pictures(directory.path() / folder, 1);
    }
  });
  data::Joined joined;
  joined.add("one", data::open_dataset(testing::world(), directory.path() / "a", data::Labels::required));
  joined.add("", data::open_dataset(testing::world(), directory.path() / "b", data::Labels::required));
  CHECK(described(joined) ==
        Texts{"one/cat/00.jpg cat 24", "one/dog/00.jpg dog 24", "cow/00.jpg cow 24", "dog/00.jpg dog 24"});
  CHECK(joined.label(1) == joined.label(3));
  CHECK(joined.sizes() == std::vector<std::int64_t>{2, 2});
}

TEST_CASE("sampler: every epoch holds every sample once") {
  const data::Sampler sampler({5, 2}, {}, 3);
  for (std::int64_t epoch = 0; epoch < 3; ++epoch) {
    std::set<std::int64_t> seen;
    for (std::int64_t i = 0; i < 7; ++i) seen.insert(sampler(7 * epoch + i));
    CHECK(seen.size() == 7);
    CHECK(*seen.rbegin() == 6);
  }
}

TEST_CASE("sampler: weights are exact in every block, and each source is gone through evenly") {
  const std::vector<std::int64_t> sizes = {40, 1000, 7};
  const data::Sampler sampler(sizes, {1, 2, 0.333}, 3);
  std::map<std::int64_t, std::int64_t> times;
  std::vector<std::int64_t> of_source(3);
  for (std::int64_t position = 0; position < 20'000; ++position) {
    const std::int64_t sample = sampler(position);
    ++times[sample];
    ++of_source[sample < 40 ? 0 : sample < 1040 ? 1 : 2];
    if (position == 9'999) CHECK(of_source == std::vector<std::int64_t>{3000, 6001, 999});
  }
  CHECK(of_source == std::vector<std::int64_t>{6000, 12002, 1998});
  const auto spread = [&](std::int64_t begin, std::int64_t end) {
    std::int64_t least = 1 << 20, most = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      least = std::min(least, times[i]);
      most = std::max(most, times[i]);
    }
    return most - least;
  };
  CHECK(spread(0, 40) <= 1);
  CHECK(spread(40, 1040) <= 1);
  CHECK(spread(1040, 1047) <= 1);
  // A replacement is of the same source, and not always the same sample.
  const auto source = [](std::int64_t sample) { return sample < 40 ? 0 : sample < 1040 ? 1 : 2; };
  std::set<std::int64_t> replacements;
  for (std::uint32_t attempt = 1; attempt < 20; ++attempt) {
    replacements.insert(sampler.replacement(17, attempt));
    CHECK(source(*replacements.rbegin()) == source(sampler(17)));
  }
  CHECK(replacements.size() > 3);
}

TEST_CASE("sampler: weights that cannot be are refused") {
  CHECK_THROWS_AS(data::Sampler({5, 2}, {1}, 3), core::UsageError);
  CHECK_THROWS_AS(data::Sampler({5, 2}, {1, 0}, 3), core::UsageError);
  CHECK_THROWS_AS(data::Sampler({5, 2}, {1, 1e-6}, 3), core::UsageError);
}

namespace {

/// The bytes with a few random changes: flipped bits, a part overwritten by another, zeros, a cut.
std::vector<std::byte> mutated(std::vector<std::byte> bytes, std::uint64_t seed) {
  core::Random random(seed, core::Purpose::demo, 0);
  const auto place = [&] { return random.below(std::ssize(bytes)); };
  for (std::int64_t change = 1 + random.below(4); change > 0 && !bytes.empty(); --change) {
    const std::int64_t at = place(), length = std::min(1 + random.below(600), std::ssize(bytes) - at);
    switch (random.below(4)) {
      case 0:
        bytes[static_cast<std::size_t>(at)] ^= static_cast<std::byte>(1 << random.below(8));
        break;
      case 1:
        std::copy_n(bytes.begin() + std::min(place(), std::ssize(bytes) - length), length, bytes.begin() + at);
        break;
      case 2:
        std::fill_n(bytes.begin() + at, length, std::byte{0});
        break;
      default:
        if (random.below(4) == 0) bytes.resize(static_cast<std::size_t>(at));
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("mutated tars and lists are read, or refused in a sentence") {
  const testing::TemporaryDirectory directory;
  const fs::path file = directory.path() / fmt::format("mutated-{}", testing::world().rank());
  const auto as_bytes = [](std::string_view text) {
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    return std::vector<std::byte>(begin, begin + text.size());
  };
  std::map<std::string, std::vector<std::byte>> seeds = {
      {"csv", as_bytes("path,label\n\"x, \"\"1\"\".png\",cat\nb.png,7\n")},
      {"json", as_bytes(R"({"images": [{"file_name": "x.png", "label": 3}, ["y.png", "dog"], "z.png"]})")},
      {"jsonl", as_bytes("{\"path\": \"x.png\"}\n[\"y.png\", 3]\n")}};
  for (const char* name : {"ustar-000", "gnu", "pax", "n02"}) {
    seeds[std::string(name) + ".tar"] = testing::read_file(tar(std::string(name) + ".tar"));
  }
  int read = 0, refused = 0;
  for (const auto& [name, bytes] : seeds) {
    const bool is_tar = name.ends_with(".tar");
    const fs::path mutant = file.string() + (is_tar ? ".tar" : "." + name);
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
      CAPTURE(name);
      CAPTURE(seed);
      testing::write_file(mutant, mutated(bytes, seed));
      data::IndexRows rows;
      try {
        const auto scanner = is_tar ? data::scan_tars({mutant}) : data::scan_list(mutant);
        const Texts units = scanner->units(1, rows);
        scanner->scan(units.at(0), 0, rows);
        rows.sort();
        rows.number_classes({});
        const auto images = data::indexed_images(std::make_shared<const data::Index>(rows), directory.path(),
                                                 rows.containers, /*labelled=*/true);
        ++read;
        for (std::int64_t row = 0; row < images->size(); ++row) {
          CHECK(images->label(row) < std::ssize(images->class_names()));
          if (is_tar) CHECK(std::ssize(images->get(row).bytes) == images->length(row));
        }
      } catch (const core::InputError&) {
        ++refused;
      }
    }
  }
  CHECK(read > 500);
  CHECK(refused > 50);
}

}  // namespace allosaur
