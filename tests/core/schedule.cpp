#include "core/schedule.hpp"

#include <cmath>
#include <string>

#include <nlohmann/json.hpp>

#include "core/files.hpp"
#include "testing.hpp"

using allosaur::core::CosineSchedule;
using allosaur::core::LinearSchedule;

namespace {

struct Recipe {
  const char* name;
  double base_lr, final_weight_decay, momentum;
  std::int64_t epochs, warmup_epochs;
};

}  // namespace

TEST_CASE("schedule: equals the official code's at every recorded iteration of three recipes") {
  constexpr std::int64_t kEpoch = 1250;
  const auto recorded =
      nlohmann::json::parse(allosaur::core::read_text(allosaur::testing::data_directory() / "schedules.json"));
  for (const Recipe& recipe :
       {Recipe{"vitl16_short", 0.004, 0.4, 0.992, 100, 10}, Recipe{"vitl14", 2e-4, 0.2, 0.994, 500, 80},
        Recipe{"vitg14", 2e-4, 0.2, 0.994, 500, 80}}) {
    const auto& expected = recorded[recipe.name];
    const std::int64_t total = recipe.epochs * kEpoch;
    REQUIRE(expected["total_iterations"] == total);
    const double lr = recipe.base_lr * std::sqrt(expected["global_batch"].get<double>() / 1024);
    const CosineSchedule learning_rate{
        .base = lr, .final = 1e-6, .total = total, .warmup = recipe.warmup_epochs * kEpoch};
    CosineSchedule last_layer = learning_rate;
    last_layer.freeze = kEpoch;
    const CosineSchedule weight_decay{.base = 0.04, .final = recipe.final_weight_decay, .total = total};
    const CosineSchedule momentum{.base = recipe.momentum, .final = 1, .total = total};
    const LinearSchedule temperature{.start = 0.04, .final = 0.07, .warmup = 30 * kEpoch};
    for (const auto& [text, sample] : expected["samples"].items()) {
      const std::int64_t iteration = std::stoll(text);
      CAPTURE(recipe.name);
      CAPTURE(iteration);
      const auto close = [&](double value, const char* name) {
        const double reference = sample[name];
        CHECK(std::abs(value - reference) <= 1e-13 + 1e-9 * std::abs(reference));
      };
      close(learning_rate.value_at(iteration), "lr");
      close(last_layer.value_at(iteration), "last_layer_lr");
      close(weight_decay.value_at(iteration), "weight_decay");
      close(momentum.value_at(iteration), "teacher_momentum");
      close(temperature.value_at(iteration), "teacher_temp");
    }
  }
}

TEST_CASE("schedule: edges") {
  const CosineSchedule schedule{.base = 2, .final = 1, .total = 10, .warmup = 4, .start = 0.5};
  CHECK(schedule.value_at(0) == 0.5);
  CHECK(schedule.value_at(3) == 2);
  CHECK(schedule.value_at(4) == 2);
  CHECK(schedule.value_at(10) == 1);
  CHECK(schedule.value_at(1000000) == 1);
  CHECK(CosineSchedule{.base = 2, .final = 1, .total = 3, .warmup = 3}.value_at(2) == 2);
  CHECK(CosineSchedule{.base = 2, .final = 1, .total = 3, .warmup = 1, .start = 0.5}.value_at(0) == 0.5);
  CHECK(LinearSchedule{.start = 1, .final = 2, .warmup = 0}.value_at(0) == 2);
}
