#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <latch>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <thread>

#include <ATen/ATen.h>

#include "core/error.hpp"
#include "data/loader.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

/// `size` pictures in memory; those in `broken` are cut short.
class Pictures final : public data::Dataset {
 public:
  explicit Pictures(int size, std::vector<std::int64_t> broken = {}) {
    for (int i = 0; i < size; ++i)
      encoded_.push_back(io::encode_jpeg(testing::picture(static_cast<std::uint64_t>(i), 30, 26), 90));
    for (const std::int64_t i : broken) encoded_[static_cast<std::size_t>(i)].resize(200);
  }
  std::int64_t size() const override { return static_cast<std::int64_t>(encoded_.size()); }
  data::Sample get(std::int64_t index) const override {
    ++reads;
    if (index == fault) throw std::runtime_error("the worker fails");
    if (index == slow) opened.wait();
    return {encoded_.at(static_cast<std::size_t>(index)), -1, key(index)};
  }
  std::int64_t label(std::int64_t) const override { return -1; }
  std::string key(std::int64_t index) const override { return "picture " + std::to_string(index); }
  const std::vector<std::string>& class_names() const override { return names_; }

  std::int64_t fault = -1, slow = -1;
  mutable std::atomic<std::int64_t> reads = 0;
  std::latch opened{1};  ///< what reading the slow picture waits for

 private:
  std::vector<std::vector<std::byte>> encoded_;
  std::vector<std::string> names_;
};

data::LoaderConfig small_config() {
  data::LoaderConfig config;
  config.augment.global_crops_size = 16;
  config.augment.local_crops_size = 8;
  config.augment.local_crops_number = 3;
  config.mask.patches_per_side = 4;
  config.seed = 9;
  config.global_batch = 8;
  config.group = 4;
  config.max_rejected = 0.2;
  return config;
}

bool same(const data::Batch& a, const data::Batch& b) {
  return a.iteration == b.iteration && a.keys == b.keys && a.masks.equal(b.masks) &&
         a.global_crops.equal(b.global_crops) && a.local_crops.equal(b.local_crops);
}

/// Batches of two ranks side by side, in the order of one rank's batch.
data::Batch join(const data::Batch& a, const data::Batch& b) {
  const auto rows = [](const at::Tensor& x, const at::Tensor& y, std::int64_t crops) {
    const auto split = [&](const at::Tensor& t) {
      return t.view({crops, -1, t.size(1), t.dim() == 4 ? t.size(2) * t.size(3) : 1});
    };
    std::vector<std::int64_t> sizes = x.sizes().vec();
    sizes[0] *= 2;
    return at::cat({split(x), split(y)}, 1).reshape(sizes);
  };
  data::Batch joined = a;
  joined.global_crops = rows(a.global_crops, b.global_crops, 2);
  joined.local_crops = rows(a.local_crops, b.local_crops, 3);
  joined.masks = rows(a.masks, b.masks, 2);
  joined.keys.insert(joined.keys.end(), b.keys.begin(), b.keys.end());
  return joined;
}

}  // namespace

TEST_CASE("a batch depends neither on ranks nor threads nor where loading began") {
  const auto pictures = std::make_shared<Pictures>(20);
  data::LoaderConfig config = small_config();
  data::Loader one(pictures, config, 0, 1, 0);
  std::vector<data::Batch> expected;
  for (int i = 0; i < 6; ++i) expected.push_back(one.next());

  const data::Batch& first = expected[0];
  CHECK((first.global_crops.sizes() == at::IntArrayRef{16, 3, 16, 16}));
  CHECK((first.local_crops.sizes() == at::IntArrayRef{24, 3, 8, 8}));
  CHECK((first.masks.sizes() == at::IntArrayRef{16, 16}));
  CHECK(first.keys.size() == 8);
  CHECK(first.global_crops.isfinite().all().item<bool>());
  CHECK_FALSE(first.masks.equal(expected[1].masks));

  config.workers = 3;
  data::Loader threads(pictures, config, 0, 1, 0);
  data::Loader left(pictures, config, 0, 2, 0), right(pictures, config, 1, 2, 0);
  for (int i = 0; i < 6; ++i) {
    CAPTURE(i);
    CHECK(same(expected[static_cast<std::size_t>(i)], threads.next()));
    CHECK(same(expected[static_cast<std::size_t>(i)], join(left.next(), right.next())));
  }
  data::Loader late(pictures, config, 0, 1, 4);
  CHECK(same(expected[4], late.next()));
  CHECK(same(expected[5], late.next()));

  config.seed = 10;
  data::Loader other(pictures, config, 0, 1, 0);
  CHECK_FALSE(same(expected[0], other.next()));
}

TEST_CASE("a group may span ranks") {
  const auto pictures = std::make_shared<Pictures>(20);
  data::LoaderConfig config = small_config();
  config.group = 8;
  data::Loader one(pictures, config, 0, 1, 3), left(pictures, config, 0, 2, 3), right(pictures, config, 1, 2, 3);
  CHECK(same(one.next(), join(left.next(), right.next())));
}

TEST_CASE("every image comes once an epoch") {
  const auto pictures = std::make_shared<Pictures>(20);
  data::Loader loader(pictures, small_config(), 0, 1, 0);
  std::vector<std::string> keys;
  for (int i = 0; i < 5; ++i) {
    for (const std::string& key : loader.next().keys) keys.push_back(key);
  }
  for (const auto begin : {keys.begin(), keys.begin() + 20}) {
    std::vector<std::string> epoch(begin, begin + 20);
    std::sort(epoch.begin(), epoch.end());
    CHECK(std::unique(epoch.begin(), epoch.end()) == epoch.end());
  }
  CHECK(std::vector<std::string>(keys.begin(), keys.begin() + 20) !=
        std::vector<std::string>(keys.begin() + 20, keys.end()));
  CHECK(loader.distinct_seen() == 20);
}

TEST_CASE("broken images are replaced, listed once and limited") {
  const auto pictures = std::make_shared<Pictures>(20, std::vector<std::int64_t>{3, 11});
  data::LoaderConfig config = small_config();
  data::Loader loader(pictures, config, 0, 1, 0);
  config.workers = 3;
  data::Loader threads(pictures, config, 0, 1, 0);
  for (int i = 0; i < 6; ++i) {
    const data::Batch batch = loader.next();
    CHECK(std::count(batch.keys.begin(), batch.keys.end(), "picture 3") == 0);
    CHECK(same(batch, threads.next()));
  }
  std::vector<data::Rejected> rejected = loader.rejected();
  REQUIRE(rejected.size() == 2);
  if (rejected[0].key != "picture 3") std::swap(rejected[0], rejected[1]);
  CHECK(rejected[0].key == "picture 3");
  CHECK(rejected[1].key == "picture 11");
  CHECK_FALSE(rejected[0].reason.empty());

  config.max_rejected = 0.05;
  data::Loader strict(pictures, config, 0, 1, 0);
  CHECK_THROWS_AS(
      [&] {
        for (int i = 0; i < 6; ++i) strict.next();
      }(),
      core::InputError);
}

TEST_CASE("a set of broken images only ends with an error") {
  const auto pictures = std::make_shared<Pictures>(4, std::vector<std::int64_t>{0, 1, 2, 3});
  data::Loader loader(pictures, small_config(), 0, 1, 0);
  CHECK_THROWS_AS(loader.next(), core::InputError);
}

TEST_CASE("what a worker throws leaves next()") {
  const auto pictures = std::make_shared<Pictures>(20);
  pictures->fault = 7;
  data::LoaderConfig config = small_config();
  config.workers = 2;
  data::Loader loader(pictures, config, 0, 1, 0);
  CHECK_THROWS_WITH_AS(
      [&] {
        for (int i = 0; i < 4; ++i) loader.next();
      }(),
      "the worker fails", std::runtime_error);
  CHECK_THROWS_AS(loader.next(), std::runtime_error);
}

// Sanitizers end a process that asks for too much.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST_CASE("a batch that there is no memory for is an error, not the end of the process") {
  data::LoaderConfig config = small_config();
  config.augment.global_crops_size = 1 << 20;
  data::Loader loader(std::make_shared<Pictures>(20), config, 0, 1, 0);
  CHECK_THROWS_AS(loader.next(), std::bad_alloc);
}
#endif

TEST_CASE("a loader stops cleanly at any time") {
  const auto pictures = std::make_shared<Pictures>(20);
  data::LoaderConfig config = small_config();
  config.workers = 3;
  for (int taken = 0; taken < 4; ++taken) {
    data::Loader loader(pictures, config, 0, 1, 0);
    for (int i = 0; i < taken; ++i) loader.next();
  }
  CHECK(true);
}

TEST_CASE("a slow file holds up no other, up to the batches decoded ahead") {
  const auto pictures = std::make_shared<Pictures>(40);
  data::LoaderConfig config = small_config();
  config.workers = 2;
  config.prefetch = 3;
  pictures->slow = core::Permutation(40, config.seed, 0)(1);  // the second image of the first batch
  data::Loader loader(pictures, config, 0, 1, 0);
  const auto wait_for = [&](std::int64_t reads) {
    while (pictures->reads < reads) std::this_thread::yield();
  };
  wait_for(3 * 8);  // the other worker has read all the rest, which it could not before finishing what came before
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(pictures->reads == 3 * 8);
  pictures->opened.count_down();
  for (int i = 0; i < 4; ++i) CHECK(loader.next().iteration == i);

  data::Loader prompt(pictures, small_config(), 0, 1, 0);
  data::Loader again(pictures, config, 0, 1, 0);
  for (int i = 0; i < 4; ++i) CHECK(same(prompt.next(), again.next()));
}

TEST_CASE("a late start reads no more than an early one") {
  for (const std::int64_t first : {std::int64_t{0}, std::int64_t{600000}}) {
    const auto pictures = std::make_shared<Pictures>(20);
    data::LoaderConfig config = small_config();
    config.prefetch = 1;
    data::Loader loader(pictures, config, 0, 1, first);
    CHECK(loader.next().iteration == first);
    while (pictures->reads < 2 * 8) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(pictures->reads == 2 * 8);  // the batch delivered and the one ahead
  }
}

TEST_CASE("memory of batches is used again, but never while anyone refers to it") {
  const auto pictures = std::make_shared<Pictures>(20);
  data::LoaderConfig config = small_config();
  config.prefetch = 2;
  data::Loader loader(pictures, config, 0, 1, 0);
  const data::Batch kept = loader.next();
  const at::Tensor copy = kept.global_crops.clone(), view = loader.next().global_crops[3], view_copy = view.clone();
  std::set<const void*> places;
  for (int i = 0; i < 30; ++i) places.insert(loader.next().global_crops.data_ptr());
  CHECK(places.size() <= 3);
  CHECK(places.count(kept.global_crops.data_ptr()) == 0);
  CHECK(kept.global_crops.equal(copy));
  CHECK(view.equal(view_copy));

  at::Tensor outlives;
  {
    data::Loader other(pictures, config, 0, 1, 0);
    outlives = other.next().global_crops;
  }
  CHECK(outlives.equal(copy));
}

TEST_CASE("batches of other types and channels") {
  const auto pictures = std::make_shared<Pictures>(20);
  data::LoaderConfig config = small_config();
  const at::Tensor floats = data::Loader(pictures, config, 0, 1, 0).next().local_crops;
  config.augment.type = at::kHalf;
  CHECK(data::Loader(pictures, config, 0, 1, 0).next().local_crops.equal(floats.to(at::kHalf)));
  CHECK_FALSE(data::Loader(pictures, config, 0, 1, 0).next().global_recipes.defined());
  config.augment.finish = false;
  config.augment.pixels.channels = 1;
  CHECK_THROWS_AS(data::Loader(pictures, config, 0, 1, 0), core::UsageError);
  config.augment.pixels.mean = config.augment.pixels.deviation = {0.5};
  const data::Batch grey = data::Loader(pictures, config, 1, 2, 5).next();  // the later 4 of 8 images
  CHECK((grey.global_crops.sizes() == at::IntArrayRef{8, 1, 16, 16}));
  CHECK((grey.global_crops.scalar_type() == at::kByte));

  const auto bytes = static_cast<std::int64_t>(sizeof(kernels::CropRecipe));
  CHECK((grey.global_recipes.sizes() == at::IntArrayRef{8, bytes}));
  CHECK((grey.local_recipes.sizes() == at::IntArrayRef{12, bytes}));
  for (std::int64_t image = 0; image < 4; ++image) {
    std::vector<data::CropPlan> plans;
    data::draw_crops(config.augment, 30, 26, config.seed, 5 * 8 + 4 + image, plans);
    for (std::int64_t c = 0; c < 5; ++c) {
      const kernels::CropRecipe wanted = data::recipe_of(config.augment, plans[static_cast<std::size_t>(c)]);
      const at::Tensor got = c < 2 ? grey.global_recipes[c * 4 + image] : grey.local_recipes[(c - 2) * 4 + image];
      CHECK(std::memcmp(&wanted, got.data_ptr(), sizeof wanted) == 0);
    }
  }
}

TEST_CASE("batches that do not divide are refused") {
  const auto pictures = std::make_shared<Pictures>(4);
  data::LoaderConfig config = small_config();
  CHECK_THROWS_AS(data::Loader(pictures, config, 0, 3, 0), core::UsageError);
  config.group = 3;
  CHECK_THROWS_AS(data::Loader(pictures, config, 0, 1, 0), core::UsageError);
}

TEST_CASE("evaluation views of many images") {
  const Pictures pictures(6, {2});
  const std::vector<std::int64_t> indices = {4, 2, 0};
  const data::Views views = data::evaluation_views(pictures, indices, {}, 16, 12, 2);
  const at::Tensor images = data::normalise(views.pixels, {}, 2);
  CHECK((images.sizes() == at::IntArrayRef{3, 3, 12, 12}));
  CHECK(views.area[0] > 0);
  CHECK(views.area[1] == 0);
  CHECK(views.area[2] > 0);
  CHECK(views.rejected.size() == 1);
  CHECK(views.rejected.at(0).key == "picture 2");
  CHECK(images[2].equal(data::evaluation_view(pictures.get(0), {}, 16, 12)));
  CHECK(views.pixels[1].eq(0).all().item<bool>());
  CHECK_THROWS_AS(data::evaluation_views(pictures, indices, {}, 12, 16, 1), core::UsageError);
}

}  // namespace allosaur
