#include "data/demo_set.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <span>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "data/augment.hpp"
#include "data/scene.hpp"
#include "io/image.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

// Pictures of each part at scale 1; the first three are per class.
constexpr int kCurated = 20, kTrain = 60, kTest = 30;
constexpr int kPoolScenes = 1300, kPoolDistractors = 400, kPoolExactCopies = 100, kPoolNearCopies = 200,
              kPoolBroken = 20;
constexpr int kDenseTrain = 60, kDenseVal = 30;

constexpr std::array kNearCopies = {Planted::cropped, Planted::blurred, Planted::reencoded, Planted::resized};
constexpr std::array kBroken = {Planted::truncated, Planted::empty, Planted::text};

const char* name_of(Planted planted) {
  switch (planted) {
    case Planted::nothing:
      return nullptr;
    case Planted::exact_copy:
      return "exact_copy";
    case Planted::cropped:
      return "cropped";
    case Planted::blurred:
      return "blurred";
    case Planted::reencoded:
      return "reencoded";
    case Planted::resized:
      return "resized";
    case Planted::truncated:
      return "truncated";
    case Planted::empty:
      return "empty";
    case Planted::text:
      return "text";
  }
  return nullptr;
}

bool is_broken(Planted planted) {
  return std::find(kBroken.begin(), kBroken.end(), planted) != kBroken.end();
}

/// How a picture is taken and stored: stream 1 of its number (stream 0 is what is drawn).
struct Format {
  int width, height, quality;
  bool png;

  Format(std::uint64_t seed, std::uint64_t number) {
    core::Random random(seed, core::Purpose::demo, number, 1);
    const double side = random.uniform(48, 104), aspect = std::exp(random.uniform(-0.28, 0.28));
    width = static_cast<int>(std::lround(side * std::sqrt(aspect)));
    height = static_cast<int>(std::lround(side / std::sqrt(aspect)));
    quality = static_cast<int>(75 + random.below(21));
    png = random.chance(0.2);
  }
};

/// Numbers the pictures and collects their items.
class Plan {
 public:
  Plan(std::uint64_t seed, double scale) : seed_(seed), scale_(scale) {}

  std::vector<DemoItem> make() {
    const auto classes = static_cast<std::int64_t>(scene_classes().size());
    for (std::int64_t c = 0; c < classes; ++c) {
      const std::string& name = scene_classes()[static_cast<std::size_t>(c)];
      for (const auto& [part, count] : {std::pair{"curated", kCurated}, {"train", kTrain}, {"test", kTest}}) {
        for (int i = 0; i < scaled(count); ++i) add(fmt::format("{}/{}/{:04}", part, name, i), {c});
      }
    }
    add_pool(classes);
    for (const bool labels : {true, false}) {
      for (const bool train : {true, false}) {
        const std::string folder = fmt::format("{}/{}", labels ? "segmentation" : "depth", train ? "train" : "val");
        for (int i = 0; i < scaled(train ? kDenseTrain : kDenseVal); ++i) {
          core::Random random(seed_, core::Purpose::demo, number_, 2);
          DemoItem& item =
              add(fmt::format("{}/images/{:04}", folder, i), core::random_subset(random, classes, 1 + random.below(3)));
          item.map = labels ? DemoItem::Map::labels : DemoItem::Map::depth;
          item.map_path = fmt::format("{}/{}/{:04}.png", folder, labels ? "labels" : "depth", i);
        }
      }
    }
    return std::move(items_);
  }

 private:
  int scaled(int count) const { return std::max(1, static_cast<int>(std::lround(count * scale_))); }

  DemoItem& add(const std::string& stem, std::vector<std::int64_t> classes) {
    const bool png = Format(seed_, number_).png;
    DemoItem& item = items_.emplace_back();
    item.path = stem + (png ? ".png" : ".jpg");
    item.number = number_++;
    item.classes = std::move(classes);
    return item;
  }

  /// Pool files are named in shuffled order, so that no name tells what a file is.
  void add_pool(std::int64_t classes) {
    const int scenes = scaled(kPoolScenes), originals = scenes + scaled(kPoolDistractors);
    const int exact = scaled(kPoolExactCopies), near = scaled(kPoolNearCopies), broken = scaled(kPoolBroken);
    core::Random random(seed_, core::Purpose::demo, number_, 3);
    const std::vector<std::int64_t> names =
        core::random_subset(random, originals + exact + near + broken, originals + exact + near + broken);
    std::size_t next_name = 0;
    const auto stem = [&] { return fmt::format("pool/{:06}", names[next_name++]); };
    const std::size_t first = items_.size();
    for (int i = 0; i < originals; ++i)
      add(stem(), i < scenes ? std::vector{i % classes} : std::vector<std::int64_t>());
    for (int i = 0; i < exact + near; ++i) {
      DemoItem copy = items_[first + static_cast<std::size_t>(random.below(originals))];
      copy.copy_of = copy.path;
      copy.planted = i < exact ? Planted::exact_copy : kNearCopies[static_cast<std::size_t>(i) % kNearCopies.size()];
      copy.path = stem() + (i < exact ? fs::path(copy.copy_of).extension().string() : ".jpg");
      items_.push_back(std::move(copy));
    }
    for (int i = 0; i < broken; ++i) {
      DemoItem& item = add(stem(), {i % classes});
      item.planted = kBroken[static_cast<std::size_t>(i) % kBroken.size()];
      item.path = fs::path(item.path).replace_extension(".jpg");
    }
  }

  std::uint64_t seed_;
  double scale_;
  std::uint64_t number_ = 0;
  std::vector<DemoItem> items_;
};

/// A near copy of a picture, as JPEG.
std::vector<std::byte> near_copy(io::Image image, Planted planted, core::Random& random) {
  int quality = 90;
  switch (planted) {
    case Planted::cropped: {
      const double kept = random.uniform(0.82, 0.95);
      const auto width = static_cast<int>(image.width * kept), height = static_cast<int>(image.height * kept);
      const io::Box box{static_cast<double>(random.below(image.width - width + 1)),
                        static_cast<double>(random.below(image.height - height + 1)), static_cast<double>(width),
                        static_cast<double>(height)};
      image = io::resize_bicubic(image, box, width, height);
      break;
    }
    case Planted::blurred:
      gaussian_blur(image, random.uniform(0.7, 1.3));
      break;
    case Planted::resized: {
      const double factor = random.chance(0.5) ? random.uniform(0.6, 0.85) : random.uniform(1.2, 1.6);
      image =
          io::resize_bicubic(image, static_cast<int>(image.width * factor), static_cast<int>(image.height * factor));
      break;
    }
    default:
      quality = static_cast<int>(20 + random.below(25));
  }
  return io::encode_jpeg(image, quality);
}

std::vector<std::byte> broken_file(std::vector<std::byte> whole, Planted planted) {
  if (planted == Planted::truncated) {
    whole.resize(whole.size() / 2);
    return whole;
  }
  static constexpr std::string_view kText = "<html><body>404: this picture has moved</body></html>\n";
  const auto text = std::as_bytes(std::span(kText));
  return planted == Planted::text ? std::vector(text.begin(), text.end()) : std::vector<std::byte>();
}

void write_file(const fs::path& file, std::span<const std::byte> bytes) {
  std::ofstream out(file, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) throw core::StorageError(fmt::format("{} cannot be written. Is the disk full?", file.string()));
}

}  // namespace

std::vector<DemoItem> plan_demo_set(std::uint64_t seed, double scale) {
  return Plan(seed, scale).make();
}

void write_demo_item(const DemoItem& item, std::uint64_t seed, const fs::path& directory) {
  const Format format(seed, item.number);
  Scene scene;
  if (item.classes.empty()) {
    scene.image = draw_distractor(seed, item.number, format.width, format.height);
  } else {
    scene = draw_scene(seed, item.number, item.classes, format.width, format.height);
  }
  std::vector<std::byte> bytes;
  if (std::find(kNearCopies.begin(), kNearCopies.end(), item.planted) != kNearCopies.end()) {
    core::Random random(seed, core::Purpose::demo, core::hash_text(item.path), 4);
    bytes = near_copy(std::move(scene.image), item.planted, random);
  } else {
    const bool png = format.png && !is_broken(item.planted);
    bytes = png ? io::encode_png(scene.image) : io::encode_jpeg(scene.image, format.quality);
    if (is_broken(item.planted)) bytes = broken_file(std::move(bytes), item.planted);
  }
  write_file(directory / item.path, bytes);
  if (item.map == DemoItem::Map::labels) {
    write_file(directory / item.map_path, io::encode_png({format.width, format.height, 1, std::move(scene.labels)}));
  } else if (item.map == DemoItem::Map::depth) {
    write_file(directory / item.map_path, io::encode_grey16_png(scene.depth, format.width, format.height));
  }
}

std::string demo_truth(const std::vector<DemoItem>& items) {
  using nlohmann::json;
  const auto text_or_null = [](const char* text) { return text == nullptr ? json() : json(text); };
  const auto key = [](const std::string& path) { return fs::path(path).filename().string(); };
  json pool = json::array();
  for (const DemoItem& item : items) {
    if (!item.path.starts_with("pool/")) continue;
    const bool shows_class = !item.classes.empty() && !is_broken(item.planted);
    pool.push_back({{"key", key(item.path)},
                    {"class", shows_class ? json(scene_classes()[static_cast<std::size_t>(item.classes[0])]) : json()},
                    {"copy_of", item.copy_of.empty() ? json() : json(key(item.copy_of))},
                    {"planted", text_or_null(name_of(item.planted))}});
  }
  std::sort(pool.begin(), pool.end(), [](const json& a, const json& b) { return a["key"] < b["key"]; });
  const json truth{{"classes", scene_classes()}, {"depth_unit_metres", 0.001}, {"pool", std::move(pool)}};
  return truth.dump(1) + '\n';
}

}  // namespace allosaur::data
