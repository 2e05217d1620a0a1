#include "jobs/evaluate/evaluate.hpp"

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "data/dataset.hpp"
#include "data/pixels.hpp"
#include "io/sharded_array.hpp"
#include "jobs/device.hpp"
#include "jobs/kept_features.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"
#include "model/weights.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kPixelsSide = 32;  // of the images whose pixels are the baseline's features

std::string required(const core::Options& options, std::string_view key, std::string_view meaning) {
  if (options.text(key).empty()) throw core::UsageError(fmt::format("{} is not given: {}.", key, meaning));
  return options.text(key);
}

/// How it is evaluated: the lines of the configuration that decide the results.
std::string identity_of(const core::Options& options) {
  constexpr std::string_view kElsewhere[] = {"weights", "train", "test", "batch", "device"};
  std::string decisive;
  std::istringstream lines(options.resolved());
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("data.index_cache") || line.starts_with("data.stage")) continue;
    const bool elsewhere = std::ranges::any_of(
        kElsewhere, [&](std::string_view key) { return line.starts_with(fmt::format("evaluate.{} ", key)); });
    if (line.starts_with("data.") || (line.starts_with("evaluate.") && !elsewhere)) decisive += line + "\n";
  }
  return core::hash_hex(core::hash_text(decisive));
}

json to_json(const evaluation::Accuracy& accuracy) {
  return {{"top1", accuracy.top1}, {"top5", accuracy.top5}, {"mean_per_class", accuracy.mean_per_class}};
}

json to_json(const evaluation::KnnResult& knn) {
  json scores = json::array();
  for (const auto& score : knn.scores) {
    json entry = to_json(score.accuracy);
    entry["k"] = score.k;
    scores.push_back(std::move(entry));
  }
  return scores;
}

json to_json(const evaluation::Head& head) {
  json entry = to_json(head.accuracy);
  entry["name"] = head.name;
  entry["last_blocks"] = head.last_blocks;
  entry["average_patches"] = head.average_patches;
  entry["learning_rate"] = head.learning_rate;
  return entry;
}

json to_json(const evaluation::LinearResult& linear) {
  json heads = json::array();
  for (const auto& head : linear.heads) heads.push_back(to_json(head));
  return {{"best", to_json(linear.best())}, {"heads", std::move(heads)}};
}

/// Shows the stages as they come and keeps the watchdog quiet.
class StageProgress {
 public:
  explicit StageProgress(Context& context) : context_(context) {}
  void update(std::string_view stage, std::string_view unit, std::int64_t done, std::int64_t total) {
    context_.watchdog.feed();
    if (stage != stage_) {
      stage_ = stage;
      bar_.emplace(context_.log, stage, total, unit);
    }
    bar_->update(done);
    if (done == total) bar_->finish();
  }

 private:
  Context& context_;
  std::string stage_;
  std::optional<core::Progress> bar_;
};

/// What results/knn.json and linear.json hold; `linear` is null without a probe.
struct Results {
  json knn, linear;
};

void print_table(core::Log& log, const Results& results) {
  const auto row = [&](const std::string& name, const json& accuracy) {
    log.info("{:<54}{:>8.2f}{:>8.2f}{:>11.2f}", name, 100 * accuracy.at("top1").get<double>(),
             100 * accuracy.at("top5").get<double>(), 100 * accuracy.at("mean_per_class").get<double>());
  };
  log.info("{:<54}{:>8}{:>8}{:>11}", "frozen features, accuracy in %", "top-1", "top-5", "per class");
  for (const json& score : results.knn.at("scores")) row(fmt::format("k-NN, k = {}", score.at("k").get<int>()), score);
  if (results.knn.contains("raw_pixels")) {
    for (const json& score : results.knn.at("raw_pixels")) {
      row(fmt::format("k-NN on raw pixels, k = {}", score.at("k").get<int>()), score);
    }
  }
  if (results.linear.is_null()) return;
  const json& best = results.linear.at("best");
  row("linear, " + best.at("name").get<std::string>(), best);
}

/// Rank 0's results of an earlier run of the same evaluation; empty when there are none.
std::optional<Results> earlier_results(const fs::path& directory, const std::string& identity, bool with_linear) {
  const auto read = [&](const char* name) {
    const fs::path file = directory / name;
    if (!fs::exists(file)) return json();
    const json content = json::parse(core::read_text(file), nullptr, false);
    return content.is_object() && content.value("identity", "") == identity ? content : json();
  };
  Results results{.knn = read("knn.json"), .linear = with_linear ? read("linear.json") : json()};
  if (results.knn.is_null() || (with_linear && results.linear.is_null())) return {};
  return results;
}

/// Collective. Keeps where a probe stands at `index`: what is the same on all ranks is written by the first.
void keep_probe(comm::Communicator& world, const fs::path& index, const std::string& identity,
                const evaluation::ProbeState& state) {
  io::ShardedWriter writer(world, index);
  for (std::size_t i = 0; i < state.tensors.size(); ++i) {
    const at::Tensor& values = state.tensors[i];
    writer.write(fmt::format("{:05}", i), values.narrow(0, 0, world.rank() == 0 ? values.size(0) : 0).contiguous());
  }
  writer.set_attribute("identity", identity);
  writer.set_attribute("iteration", state.iteration);
  writer.publish();
}

/// Collective. What was kept for the same evaluation, or the start.
evaluation::ProbeState find_probe(comm::Communicator& world, const fs::path& index, const std::string& identity) {
  const std::string found = comm::on_root(
      world, [&] { return fs::exists(index) ? io::ShardedReader(index).text_attribute("identity") : std::string(); });
  if (found != identity) return {};
  return comm::coordinate(world, [&] {
    const io::ShardedReader reader(index);
    evaluation::ProbeState state{.iteration = reader.integer_attribute("iteration"), .tensors = {}};
    for (std::size_t i = 0; i < reader.names().size(); ++i)
      state.tensors.push_back(reader.read(fmt::format("{:05}", i)));
    return state;
  });
}

class EvaluateJob final : public Job {
 public:
  std::string_view name() const override { return "evaluate"; }
  std::string_view summary() const override { return "k-NN and linear accuracy of a frozen backbone"; }
  void declare(core::Options& options) const override {
    declare_run_options(options);
    declare_source_options(options);
    declare_evaluate_options(options);
  }
  Outcome run(Context& context) const override { return evaluate(context); }
};

}  // namespace

void declare_evaluate_options(core::Options& options) {
  using core::OptionKind;
  const evaluation::EvaluateConfig defaults;
  const evaluation::LinearConfig linear;
  options.section("Evaluation of frozen features");
  options.add("evaluate.weights", "",
              "backbone: a .safetensors or .pth file, or the folder of a checkpoint (its teacher)", OptionKind::free);
  options.add("evaluate.train", "", "labelled images for the k-NN bank and the probe: a folder, or packed shards",
              OptionKind::free);
  options.add("evaluate.test", "", "labelled images to classify; the best linear head is the best on these",
              OptionKind::free);
  options
      .add("evaluate.resize", std::int64_t{defaults.extract.resize}, "shorter side of an image, in pixels",
           OptionKind::free)
      .at_least(1)
      .fits_int();
  options
      .add("evaluate.crop", std::int64_t{defaults.extract.crop}, "side of the centre crop, in pixels", OptionKind::free)
      .at_least(1)
      .fits_int();
  options
      .add("evaluate.batch", std::int64_t{defaults.extract.batch}, "images a forward pass of a rank", OptionKind::free)
      .at_least(1)
      .fits_int();
  options.add(
      "evaluate.centre", defaults.centre,
      "centre and scale features in float64 by the training set's statistics (for networks near initialisation)",
      OptionKind::free);
  options
      .add("evaluate.knn_k", defaults.knn.k, "numbers of neighbours, each clipped to the size of the bank",
           OptionKind::free)
      .not_empty()
      .at_least(1);
  options
      .add("evaluate.knn_temperature", defaults.knn.temperature, "temperature of the neighbours' votes",
           OptionKind::free)
      .above(0);
  options.add("evaluate.raw_pixels", false,
              fmt::format("also k-NN on the pixels of {0} x {0} images, as a baseline", kPixelsSide), OptionKind::free);
  options.add("evaluate.linear", true, "train the linear probe", OptionKind::free);
  options
      .add("evaluate.linear_learning_rates", linear.learning_rates, "grid, for a batch of 256 (scaled to the batch)",
           OptionKind::free)
      .not_empty()
      .above(0);
  options
      .add("evaluate.linear_blocks", linear.last_blocks, "grid: class tokens of how many last blocks", OptionKind::free)
      .not_empty()
      .at_least(1);
  options.add("evaluate.linear_iterations", linear.iterations, "iterations of the probe", OptionKind::free).at_least(1);
  options.add("evaluate.linear_batch", linear.batch, "samples an iteration over all ranks", OptionKind::free)
      .at_least(1);
  options.add("evaluate.seed", std::int64_t{0}, "seed of the probe's first weights and sample order", OptionKind::free);
  declare_device_option(options, "evaluate.device");
}

evaluation::EvaluateConfig evaluate_config(const core::Options& options, int threads) {
  evaluation::EvaluateConfig config;
  config.extract.pixels = data::read_pixel_config(options);
  config.extract.resize = options.small_integer("evaluate.resize");
  config.extract.crop = options.small_integer("evaluate.crop");
  config.extract.batch = options.small_integer("evaluate.batch");
  config.extract.threads = threads;
  config.centre = options.flag("evaluate.centre");
  config.knn.k = options.get<std::vector<std::int64_t>>("evaluate.knn_k");
  config.knn.temperature = options.number("evaluate.knn_temperature");
  if (!options.flag("evaluate.linear")) {
    config.linear.reset();
    return config;
  }
  config.linear->learning_rates = options.get<std::vector<double>>("evaluate.linear_learning_rates");
  config.linear->last_blocks = options.get<std::vector<std::int64_t>>("evaluate.linear_blocks");
  config.linear->iterations = options.integer("evaluate.linear_iterations");
  config.linear->batch = options.integer("evaluate.linear_batch");
  config.linear->seed = static_cast<std::uint64_t>(options.integer("evaluate.seed"));
  return config;
}

void check_evaluate_options(const core::Options& options, int patch_size) {
  const std::string &train = options.text("evaluate.train"), &test = options.text("evaluate.test");
  if (train.empty() != test.empty()) {
    throw core::UsageError(fmt::format("evaluate.{} is given, but evaluate.{} is not: name both, or neither.",
                                       train.empty() ? "test" : "train", train.empty() ? "train" : "test"));
  }
  if (!train.empty()) evaluation::check_view(evaluate_config(options, 1).extract, patch_size);
}

Outcome evaluate(Context& context) {
  comm::Communicator& world = context.world;
  const core::Options& options = context.options;
  // Before the output directory is opened, so that a mistake does not become its configuration.
  struct Inputs {
    evaluation::EvaluateConfig config;
    features::ExtractConfig extract;
    std::string weights, train, test;
    std::unique_ptr<model::VisionTransformer> backbone;
  };
  const Inputs inputs = comm::coordinate(world, [&] {
    Inputs result{.config = evaluate_config(options, context.threads),
                  .extract = {},
                  .weights = required(options, "evaluate.weights", "name a file or a checkpoint"),
                  .train = required(options, "evaluate.train", "name labelled images for the k-NN bank and the probe"),
                  .test = required(options, "evaluate.test", "name labelled images to classify"),
                  .backbone = {}};
    result.backbone = model::load_backbone(result.weights);
    model::require_channels(result.backbone->config(), result.config.extract.pixels.channels, result.weights);
    result.extract = evaluation::extraction(result.config, result.backbone->config());
    return result;
  });
  const evaluation::EvaluateConfig& config = inputs.config;
  const auto train = open_images(context, inputs.train, data::Labels::required);
  const auto test = open_images(context, inputs.test, data::Labels::required);
  evaluation::require_same_classes(world, *train, *test);
  if (context.dry_run) {
    const std::int64_t width = inputs.backbone->config().embed_dim;
    const std::int64_t tokens = inputs.extract.last_blocks + (inputs.extract.average_patches ? 1 : 0);
    const std::int64_t bytes = (train->size() + test->size()) * tokens * width * 4 / world.size();
    context.log.info("{} images of {} are the bank, {} of {} are classified, by features of width {}.", train->size(),
                     inputs.train, test->size(), inputs.test, width);
    context.log.info("features of a rank: {:.1f} MB in memory, and on disk until the results are written",
                     static_cast<double>(bytes) / 1e6);
    return Outcome::complete;
  }
  RunDirectory run(context, "evaluate", options.path("output"));

  Results results;
  const std::string train_identity = identify(context, *train), test_identity = identify(context, *test);
  const std::string fingerprint = comm::on_root(world, [&] { return model::fingerprint(*inputs.backbone); });
  const std::string identity =
      fmt::format("{} {} {} {}", fingerprint, train_identity, test_identity, identity_of(options));
  const bool known = comm::on_root(world, [&] {
    const auto earlier = earlier_results(run.path() / "results", identity, config.linear.has_value());
    if (earlier) results = *earlier;
    return earlier.has_value();
  });
  if (known) {
    if (world.rank() == 0) {
      context.log.info("{} was evaluated before; {} holds the results", inputs.weights,
                       (run.path() / "results").string());
      print_table(context.log, results);
    }
    return Outcome::complete;
  }

  RejectedList rejected(context, run.path());
  rejected.add_problems(*train);
  rejected.add_problems(*test);
  ComputeDevice device(context, "evaluate.device");
  device.move(*inputs.backbone);
  const auto extract = [&](const data::Dataset& images, const std::string& images_identity, const std::string& name) {
    return keep_features(context, *inputs.backbone, fingerprint,
                         {images, images_identity, run.path(), name, name + "/"}, inputs.extract, rejected);
  };
  auto bank = extract(*train, train_identity, "train");
  if (!bank) return Outcome::preempted;
  auto queries = extract(*test, test_identity, "test");
  if (!queries) return Outcome::preempted;
  rejected.judge(world.rank() == 0 ? train->size() + test->size() : 0, options.number("run.max_rejected"));
  evaluation::FrozenSets sets = evaluation::freeze(world, *train, *bank, *queries);
  bank.reset();
  queries.reset();

  StageProgress progress(context);
  evaluation::Hooks hooks;
  hooks.progress = [&](auto... stage) { progress.update(stage...); };
  hooks.alive = [&] { context.watchdog.feed(); };
  hooks.stop = [&] { return context.stop.requested(); };
  const fs::path probe_index = run.path() / "features" / "probe.h5";
  evaluation::ProbeState probe = find_probe(world, probe_index, identity);
  if (probe.iteration > 0) context.log.info("the probe goes on from iteration {}", probe.iteration);
  hooks.probe = &probe;
  const evaluation::EvaluateResult result = evaluation::score(world, std::move(sets), config, hooks);
  if (!result.complete) {
    keep_probe(world, probe_index, identity, probe);
    return Outcome::preempted;
  }

  const json common{{"identity", identity},
                    {"weights", inputs.weights},
                    {"train", inputs.train},
                    {"test", inputs.test},
                    {"train_images", result.train_images},
                    {"test_images", result.test_images},
                    {"classes", result.classes},
                    {"centred", config.centre}};
  results.knn = common;
  results.knn["temperature"] = config.knn.temperature;
  results.knn["scores"] = to_json(result.knn);
  json metrics{{"phase", "evaluate"},
               {"knn_k", result.knn.best().k},
               {"knn_top1", result.knn.best().accuracy.top1},
               {"centred", config.centre}};
  if (options.flag("evaluate.raw_pixels")) {
    evaluation::EvaluateConfig pixels = config;
    hooks.stop = {};  // this is soon done, and what comes before it would be lost
    pixels.extract.resize = pixels.extract.crop = kPixelsSide;
    pixels.linear.reset();
    const auto baseline = evaluation::extract_pixel_sets(world, *train, *test, pixels, hooks);
    const auto knn = evaluation::score(world, baseline, pixels, hooks).knn;
    results.knn["raw_pixels"] = to_json(knn);
    metrics["raw_pixels_knn_top1"] = knn.best().accuracy.top1;
  }
  if (result.linear) {
    results.linear = common;
    results.linear["iterations"] = config.linear->iterations;
    results.linear["batch"] = config.linear->batch;
    results.linear.update(to_json(*result.linear));
    metrics["linear_top1"] = result.linear->best().accuracy.top1;
  }

  comm::coordinate(world, [&] {
    if (world.rank() != 0) return;
    core::write_atomically(run.path() / "results" / "knn.json", results.knn.dump(2) + "\n");
    if (result.linear) core::write_atomically(run.path() / "results" / "linear.json", results.linear.dump(2) + "\n");
    run.metrics()->write(metrics);
    std::error_code error;  // what stays only takes room
    fs::remove_all(run.path() / "features", error);
    print_table(context.log, results);
  });
  return Outcome::complete;
}

std::unique_ptr<Job> make_evaluate_job() {
  return std::make_unique<EvaluateJob>();
}

}  // namespace allosaur::jobs
