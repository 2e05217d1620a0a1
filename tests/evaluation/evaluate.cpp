#include "evaluation/evaluate.hpp"

#include "core/error.hpp"
#include "features/memory_dataset.hpp"
#include "model/weights.hpp"
#include "testing.hpp"

namespace allosaur::evaluation {
namespace {

using testing::MemoryDataset;
using testing::world;

EvaluateConfig small_config() {
  EvaluateConfig config;
  config.extract = {.resize = 16, .crop = 16, .batch = 8};
  config.knn.k = {5};
  config.linear->iterations = 40;
  config.linear->batch = 32;
  return config;
}

TEST_CASE("a backbone is evaluated alike on one rank and on all, broken images left out") {
  const MemoryDataset train(40, 4, 1, /*broken=*/3), test(21, 4, 2);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  std::int64_t alive = 0;
  std::vector<std::string> stages;
  Hooks hooks;
  hooks.alive = [&] { ++alive; };
  hooks.progress = [&](std::string_view stage, std::string_view, std::int64_t done, std::int64_t total) {
    CHECK(done <= total);
    if (done == total) stages.emplace_back(stage);
  };
  const EvaluateResult result = evaluate_backbone(world(), *backbone, train, test, small_config(), hooks);
  CHECK(alive >= (world().share(21).size() > 0 ? 3 : 1));  // search, votes, scores of the probe
  CHECK(stages == std::vector<std::string>{"features of the training set", "features of the test set", "linear probe"});
  CHECK(result.classes == 4);
  CHECK(result.train_images == 39);
  CHECK(result.test_images == 21);
  CHECK(result.knn.best().accuracy.top1 > 0.9);
  REQUIRE(result.linear.has_value());
  CHECK(result.linear->heads.size() == 52);
  CHECK(result.linear->best().last_blocks <= 3);

  const auto alone = world().split(world().rank(), 0);
  const EvaluateResult expected = evaluate_backbone(*alone, *backbone, train, test, small_config());
  CHECK(result.knn.best().accuracy.top1 == doctest::Approx(expected.knn.best().accuracy.top1).epsilon(1e-4));
  CHECK(result.linear->best().accuracy.top1 == doctest::Approx(expected.linear->best().accuracy.top1).epsilon(1e-4));
}

TEST_CASE("pixels are a baseline for k-NN") {
  const MemoryDataset train(40, 4, 1), test(20, 4, 2);
  EvaluateConfig config = small_config();
  config.linear.reset();
  config.centre = true;
  const EvaluateResult result = score(world(), extract_pixel_sets(world(), train, test, config), config);
  CHECK(result.knn.best().accuracy.top1 > 0.9);
  CHECK_FALSE(result.linear.has_value());
}

TEST_CASE("a rank without images takes part") {
  const MemoryDataset train(3, 3, 1), test(3, 3, 2);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  EvaluateConfig config = small_config();
  config.centre = true;
  const EvaluateResult result = evaluate_backbone(world(), *backbone, train, test, config);
  CHECK(result.train_images == 3);
  CHECK(result.test_images == 3);
  CHECK(result.linear->heads.size() == 52);
}

TEST_CASE("the probe leaves early on all ranks when one is asked to") {
  const MemoryDataset train(8, 4, 1), test(8, 4, 2);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  std::int64_t iterations = 0;
  Hooks hooks;
  hooks.progress = [&](std::string_view stage, std::string_view, std::int64_t done, std::int64_t) {
    if (stage == "linear probe") iterations = done;
  };
  hooks.stop = [&] { return world().rank() + 1 == world().size() && iterations == 7; };
  const EvaluateResult result = evaluate_backbone(world(), *backbone, train, test, small_config(), hooks);
  CHECK_FALSE(result.complete);
  CHECK_FALSE(result.linear->complete);
  CHECK(iterations == 7);
}

TEST_CASE("extraction leaves early on all ranks when one is asked to; the next evaluation finds its images decoded") {
  const MemoryDataset train(40, 4, 1), test(24, 4, 2);
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  features::KeptViews views(1 << 20);
  for (const std::string stage : {"features of the training set", "features of the test set"}) {
    bool reached = false;
    Hooks hooks;
    hooks.views = &views;
    hooks.progress = [&](std::string_view now, std::string_view, std::int64_t, std::int64_t) {
      reached |= now == stage;
    };
    hooks.stop = [&] { return world().rank() + 1 == world().size() && reached; };
    CHECK_FALSE(evaluate_backbone(world(), *backbone, train, test, small_config(), hooks).complete);
  }
  Hooks hooks;
  hooks.views = &views;
  const std::int64_t images = world().share(40).size() + world().share(24).size();
  for (int time = 0; time < 2; ++time) {
    const EvaluateResult result = evaluate_backbone(world(), *backbone, train, test, small_config(), hooks);
    CHECK(result.complete);
    CHECK(result.knn.best().accuracy.top1 > 0.9);
    CHECK(views.room() == (1 << 20) - images * 3 * 16 * 16);
  }
}

TEST_CASE("what cannot be evaluated is refused on every rank") {
  const auto backbone = model::new_backbone(testing::tiny_network(), 0);
  const MemoryDataset three(6, 3, 1), four(8, 4, 1), broken(1, 3, 1, 0);
  EvaluateConfig config = small_config();
  CHECK_THROWS_AS(evaluate_backbone(world(), *backbone, three, four, config), core::Error);
  CHECK_THROWS_AS(evaluate_backbone(world(), *backbone, three, broken, config), core::Error);
  config.extract.crop = 15;
  CHECK_THROWS_AS(evaluate_backbone(world(), *backbone, three, three, config), core::Error);
}

}  // namespace
}  // namespace allosaur::evaluation
