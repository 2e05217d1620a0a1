#include <algorithm>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "data/dataset.hpp"
#include "data/demo_set.hpp"
#include "data/scene.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

namespace fs = std::filesystem;

constexpr double kScale = 0.03;

/// Collective. A small demo set, each rank writing its share, and what truth.json says about its pool.
nlohmann::json make_demo_set(const fs::path& directory) {
  comm::Communicator& world = testing::world();
  const auto items = data::plan_demo_set(1, kScale);
  for (const data::DemoItem& item : items) {
    fs::create_directories((directory / item.path).parent_path());
    if (!item.map_path.empty()) fs::create_directories((directory / item.map_path).parent_path());
  }
  for (std::size_t i = static_cast<std::size_t>(world.rank()); i < items.size();
       i += static_cast<std::size_t>(world.size())) {
    data::write_demo_item(items[i], 1, directory);
  }
  world.barrier();
  return nlohmann::json::parse(data::demo_truth(items));
}

}  // namespace

TEST_CASE("the demo set is what its truth says") {
  const testing::TemporaryDirectory directory;
  const fs::path pool = directory.path() / "pool";
  const nlohmann::json truth = make_demo_set(directory.path());
  CHECK(truth["classes"].size() == 12);
  std::map<std::string, int> planted, classes;
  int distractors = 0;
  for (const auto& entry : truth["pool"]) {
    const std::string key = entry["key"];
    CAPTURE(key);
    CHECK(fs::exists(pool / key));
    const std::vector<std::byte> bytes = testing::read_file(pool / key);
    const std::string how = entry["planted"].is_null() ? "" : entry["planted"];
    const bool broken = how == "truncated" || how == "empty" || how == "text";
    if (broken) {
      CHECK_THROWS_AS(io::decode_image(bytes), core::InputError);
    } else {
      const io::Image image = io::decode_image(bytes);
      CHECK(image.width >= 20);
      CHECK(image.width <= 200);
    }
    CHECK(entry["copy_of"].is_null() == (how.empty() || broken));
    if (!entry["copy_of"].is_null()) {
      const std::string original = entry["copy_of"];
      CHECK(original != key);
      CHECK((testing::read_file(pool / original) == bytes) == (how == "exact_copy"));
    }
    if (!how.empty()) ++planted[how];
    if (how.empty() && entry["class"].is_null()) ++distractors;
    if (how.empty() && !entry["class"].is_null()) ++classes[entry["class"]];
  }
  for (const char* how : {"exact_copy", "cropped", "blurred", "reencoded", "resized", "truncated"})
    CHECK(planted[how] > 0);
  CHECK(distractors == 12);
  CHECK(classes.size() == 12);
  CHECK(std::distance(fs::directory_iterator(pool), {}) == static_cast<std::ptrdiff_t>(truth["pool"].size()));

  for (const char* part : {"curated", "train", "test"}) {
    CHECK(data::open_dataset(testing::world(), directory.path() / part, data::Labels::required)->class_names().size() ==
          12);
  }
  for (const auto& image : fs::directory_iterator(directory.path() / "segmentation/val/images")) {
    const io::ImageInfo info = io::probe_image(testing::read_file(image.path()));
    int width = 0, height = 0;
    const auto labels = io::decode_grey_png(
        testing::read_file(directory.path() / "segmentation/val/labels" / (image.path().stem().string() + ".png")),
        width, height);
    CHECK(width == info.width);
    CHECK(height == info.height);
    CHECK(*std::max_element(labels.begin(), labels.end()) <= 12);
    CHECK(*std::max_element(labels.begin(), labels.end()) > 0);
  }
}

TEST_CASE("the demo set depends on its seed only") {
  const auto items = data::plan_demo_set(5, kScale), again = data::plan_demo_set(5, kScale);
  CHECK(data::demo_truth(items) == data::demo_truth(again));
  CHECK(data::demo_truth(items) != data::demo_truth(data::plan_demo_set(6, kScale)));
  std::set<std::string> paths;
  for (const data::DemoItem& item : items) paths.insert(item.path);
  CHECK(paths.size() == items.size());
  const std::int64_t classes[] = {3};
  CHECK(data::draw_scene(5, 9, classes, 40, 50).image.pixels == data::draw_scene(5, 9, classes, 40, 50).image.pixels);
  CHECK(data::draw_scene(5, 9, classes, 40, 50).image.pixels != data::draw_scene(6, 9, classes, 40, 50).image.pixels);
}

TEST_CASE("scenes have labels and depth that belong together") {
  const std::int64_t classes[] = {2, 7};
  const data::Scene scene = data::draw_scene(1, 4, classes, 60, 50);
  std::set<int> seen(scene.labels.begin(), scene.labels.end());
  for (const int label : seen) CHECK((label == 0 || label == 3 || label == 8));
  CHECK(seen.size() >= 2);
  for (std::size_t i = 0; i < scene.labels.size(); ++i) {
    if (scene.labels[i] != 0) CHECK(scene.depth[i] <= 3000);
    CHECK(scene.depth[i] >= 800);
    CHECK(scene.depth[i] <= 9000);
  }
}

}  // namespace allosaur
