// The lines of metrics.jsonl that say that something is wrong.
#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/environment.hpp"
#include "core/log.hpp"
#include "testing.hpp"
#include "train/loop.hpp"
#include "train/small_run.hpp"

namespace allosaur {
namespace {

using testing::small_options;

/// Collective. The lines of metrics.jsonl that a run of some images writes.
std::vector<nlohmann::json> metrics_of(const core::Options& options, std::int64_t stop_at = 0) {
  auto& world = testing::world();
  const testing::TemporaryDirectory folder;
  testing::write_images(folder.path() / "images", 12);
  const auto file = folder.path() / "metrics.jsonl";
  {
    std::optional<core::MetricsLog> metrics;
    if (world.rank() == 0) metrics.emplace(file, 1);
    comm::StopSignal stop;
    comm::Watchdog watchdog(testing::log(), world, std::chrono::seconds(0));
    train::LoopContext context{world, world,    testing::log(), metrics ? &*metrics : nullptr,
                               stop,  watchdog, folder.path()};
    train::TrainConfig config = train::read_config(options, world.size());
    config.stop_at = stop_at;
    train::pretrain(context, config, data::open_dataset(world, folder.path() / "images", data::Labels::ignored));
  }
  std::vector<nlohmann::json> lines;
  std::ifstream text(file);
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  world.barrier();  // the folder goes
  return lines;
}

TEST_CASE("metrics: iterations that overflow float16 are counted in the next line") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  core::Options options = small_options();
  options.set("train.precision", std::string("float16"));
  options.set("train.log_period", std::int64_t{1});
  options.set("optim.epochs", 3.0);
  options.set("train.checkpoint_period", std::int64_t{1000});
  // Class tokens of a fresh network hardly differ, so that these gradients would overflow at every scale above 1.
  options.set("dino.koleo_loss_weight", 0.0);
  const auto lines = metrics_of(options);
  if (world.rank() != 0) return;
  REQUIRE_FALSE(lines.empty());
  double scale = 65536;
  std::int64_t before = 0, overflows = 0;
  for (const nlohmann::json& line : lines) {
    CHECK(line.at("iteration") == before + line.at("overflows").get<std::int64_t>() + 1);
    before = line.at("iteration");
    for (std::int64_t i = line.at("overflows"); i > 0; --i) scale /= 2;
    CHECK(line.at("loss_scale") == scale);
    CHECK(line.at("not_finite") == 0);
    overflows += line.at("overflows").get<std::int64_t>();
  }
  CHECK(overflows > 0);
  CHECK(std::ssize(lines) + overflows == 30);
}

TEST_CASE("metrics: sections are parts of their iterations") {
  if (testing::world().size() > 2) return;
  core::Options options = small_options();
  options.set("train.log_period", std::int64_t{2});
  for (const nlohmann::json& line : metrics_of(options)) {
    double sum = 0;
    for (const std::string name : {"gather", "teacher", "forward", "backward", "reduce", "update"}) {
      CAPTURE(name);
      const double seconds = line.at("seconds_" + name);
      CHECK((name == "gather" ? seconds >= 0 : seconds > 0));
      sum += seconds;
    }
    CHECK(sum <= line.at("seconds_iteration").get<double>());
  }
}

TEST_CASE("metrics: an iteration that is not finite is a line with its samples, and is counted in the next") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  core::Options options = small_options();
  options.set("train.log_period", std::int64_t{1});
  // The first iteration divides by what float32 has no inverse of.
  options.set("teacher.warmup_teacher_temp", 1e-44);
  options.set("teacher.warmup_teacher_temp_epochs", 0.3);
  const auto lines = metrics_of(options, /*stop_at=*/3);
  if (world.rank() != 0) return;
  REQUIRE(lines.size() == 3);
  CHECK(lines[0].at("phase") == "not_finite");
  CHECK(lines[0].at("iteration") == 1);
  CHECK(lines[0].at("losses").get<std::string>().starts_with("DINO local "));
  CHECK(lines[0].at("losses").get<std::string>().find("nan") != std::string::npos);
  REQUIRE(lines[0].at("samples").size() == static_cast<std::size_t>(world.size()));
  for (const auto& samples : lines[0].at("samples")) {
    const auto text = samples.get<std::string>();
    CHECK(std::ranges::count(text, '\n') == 8 / world.size() - 1);  // a key a line
    CHECK(text.ends_with(".png"));
  }
  for (const std::size_t i : {1U, 2U}) {
    CHECK_FALSE(lines[i].contains("phase"));
    CHECK(lines[i].at("iteration") == i + 1);
    CHECK(lines[i].at("not_finite") == (i == 1 ? 1 : 0));
    CHECK(lines[i].at("overflows") == 0);
    CHECK(lines[i].at("total_loss").is_number());
  }
}

TEST_CASE("metrics: signs of collapse are said once each, after a hundred iterations") {
  if (testing::world().size() > 1) return;  // one image an iteration
  core::Options options = small_options();
  for (const char* key : {"train.batch_size", "train.batch_size_per_gpu"}) options.set(key, std::int64_t{1});
  options.set("optim.epochs", 12.0);
  options.set("train.log_period", std::int64_t{10});
  options.set("train.checkpoint_period", std::int64_t{1000});
  options.set("optim.base_lr", 1e-12);
  options.set("dino.koleo_loss_weight", 0.0);
  // Two crops that choose a prototype each make an entropy of log 2 at most, less than a tenth of log 2048.
  options.set("dino.head_n_prototypes", std::int64_t{2048});
  for (const char* key : {"teacher.warmup_teacher_temp", "teacher.teacher_temp"}) options.set(key, 1e-9);
  std::vector<std::string> warnings;
  for (const nlohmann::json& line : metrics_of(options)) {
    if (!line.contains("phase")) continue;
    CHECK(line.at("phase") == "warning");
    CHECK(line.at("iteration") == 101);
    warnings.push_back(line.at("warning"));
  }
  REQUIRE(warnings.size() == 2);
  CHECK(warnings[0].starts_with("the teacher uses hardly any of its prototypes (entropy of the mean target 0."));
  CHECK(warnings[1].starts_with("the teacher's class tokens use about 1."));
}

}  // namespace
}  // namespace allosaur
