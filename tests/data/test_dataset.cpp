#include <fstream>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "data/dataset.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> keys(const data::Dataset& dataset) {
  std::vector<std::string> all;
  for (std::int64_t i = 0; i < dataset.size(); ++i) all.push_back(dataset.key(i));
  return all;
}

/// Collective. What open_dataset() says about `source`.
std::string open_error(const fs::path& source, data::Labels labels = data::Labels::ignored) {
  try {
    data::open_dataset(testing::world(), source, labels);
  } catch (const core::Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a folder of images, labelled by top folder") {
  const testing::TemporaryDirectory directory;
  const fs::path root = directory.path() / "images";
  testing::on_first_rank([&] {
    const std::vector<std::byte> jpeg = io::encode_jpeg(testing::picture(1, 8, 8), 90);
    for (const char* name :
         {"b/2.JPG", "b/deep/er/1.jpeg", "a-b/x.Png", "a/3.webp", "a/notes.txt", "a/.hidden.jpg", ".git/4.jpg"}) {
      testing::write_file(root / name, jpeg);
    }
    fs::create_directories(root / "empty");
    testing::write_file(directory.path() / "elsewhere/5.png", jpeg);
    fs::create_directory_symlink(directory.path() / "elsewhere", root / "c");
    fs::create_directory_symlink(root, root / "a/loop");
  });
  const auto dataset = data::open_dataset(testing::world(), root, data::Labels::required);
  CHECK(keys(*dataset) == std::vector<std::string>{"a-b/x.Png", "a/3.webp", "b/2.JPG", "b/deep/er/1.jpeg", "c/5.png"});
  CHECK(dataset->class_names() == std::vector<std::string>{"a", "a-b", "b", "c"});
  CHECK(dataset->label(0) == 1);
  CHECK(dataset->label(1) == 0);
  CHECK(dataset->label(4) == 3);
  const data::Sample sample = dataset->get(3);
  CHECK(sample.label == 2);
  CHECK(sample.key == "b/deep/er/1.jpeg");
  CHECK(io::decode_image(sample.bytes).width == 8);
  CHECK(dataset->length(3) == static_cast<std::int64_t>(sample.bytes.size()));

  const auto unlabelled = data::open_dataset(testing::world(), root, data::Labels::ignored);
  CHECK(unlabelled->label(3) == -1);
  CHECK(unlabelled->class_names().empty());

  const auto rows = data::subset(dataset, {4, 0, 4});
  CHECK(keys(*rows) == std::vector<std::string>{"c/5.png", "a-b/x.Png", "c/5.png"});
  CHECK(rows->label(1) == 1);
}

TEST_CASE("sources that cannot be used are named") {
  const testing::TemporaryDirectory directory;
  const fs::path root = directory.path();
  testing::on_first_rank([&] {
    fs::create_directories(root / "empty/folder");
    std::ofstream(root / "file.dat") << "text";
    testing::write_pictures(root / "flat", 2);
  });
  CHECK(contains(open_error(root / "missing"), (root / "missing").string() + " does not exist"));
  CHECK(contains(open_error(root / "empty"), (root / "empty").string() + " holds no image"));
  CHECK(contains(open_error(root / "file.dat"), "neither a folder, nor"));
  CHECK(contains(open_error(root / "flat", data::Labels::required), "is in no class folder"));
  CHECK(open_error(root / "flat") == "");
}

TEST_CASE("a file that disappears is an input error naming it") {
  const testing::TemporaryDirectory directory;
  testing::on_first_rank([&] { testing::write_pictures(directory.path(), 2); });
  const auto dataset = data::open_dataset(testing::world(), directory.path(), data::Labels::ignored);
  testing::on_first_rank([&] { fs::remove(directory.path() / "01.jpg"); });
  CHECK_THROWS_WITH_AS(dataset->get(1), doctest::Contains("01.jpg"), core::InputError);
}

}  // namespace allosaur
