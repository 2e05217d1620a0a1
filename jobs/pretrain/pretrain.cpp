#include "jobs/pretrain/pretrain.hpp"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "data/joined.hpp"
#include "data/sampler.hpp"
#include "jobs/curves.hpp"
#include "jobs/device.hpp"
#include "jobs/evaluate/evaluate.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"
#include "model/weights.hpp"
#include "train/loop.hpp"
#include "train/plan.hpp"

namespace allosaur::jobs {
namespace {

constexpr const char* kEvaluatePeriod = "evaluation.eval_period_iterations";
constexpr const char* kEvaluateLinear = "evaluation.linear";
constexpr const char* kDryRunRanks = "dry-run.ranks";
constexpr std::int64_t kKeptBytes = std::int64_t{1} << 30;  // as the help of kEvaluatePeriod says

/// k-NN (and, where asked for, linear) accuracy of the teacher while it is trained, next to the losses in
/// metrics.jsonl.
class OnlineEvaluation {
 public:
  OnlineEvaluation(Context& context, std::int64_t batch)
      : context_(context),
        batch_(batch),
        config_(evaluate_config(context.options, context.threads)),
        train_(open_images(context, context.options.path("evaluate.train"), data::Labels::required)),
        test_(open_images(context, context.options.path("evaluate.test"), data::Labels::required)) {
    evaluation::require_same_classes(context.world, *train_, *test_);
    if (!context.options.flag(kEvaluateLinear)) config_.linear.reset();
  }

  /// Collective. Whether metrics.jsonl holds the evaluation of an iteration.
  bool done(std::int64_t iteration) const {
    return comm::on_root(context_.world, [&] {
      const std::filesystem::path file = run_->path() / "metrics.jsonl";
      return std::filesystem::exists(file) &&
             std::ranges::any_of(metric_lines(file, "knn_top1"), [&](const nlohmann::json& line) {
               return line.value("iteration", std::int64_t{-1}) == iteration;
             });
    });
  }

  /// Before the first evaluation.
  void write_to(RunDirectory& run) { run_ = &run; }

  /// Collective. False: it was stopped on request.
  bool operator()(std::int64_t iteration, const model::VisionTransformer& teacher) {
    const auto start = std::chrono::steady_clock::now();
    evaluation::Hooks hooks;
    hooks.progress = [this](auto...) { context_.watchdog.feed(); };
    hooks.alive = [this] { context_.watchdog.feed(); };
    hooks.stop = [this] { return context_.stop.requested(); };
    hooks.views = &views_;
    const evaluation::EvaluateResult result =
        evaluation::evaluate_backbone(context_.world, teacher, *train_, *test_, config_, hooks);
    if (!result.complete) {
      context_.log.info("The evaluation of iteration {} is left for later: asked to stop.", iteration);
      return false;
    }
    if (context_.world.rank() != 0) return true;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    nlohmann::json line{{"phase", "evaluate"},          {"iteration", iteration},
                        {"images", iteration * batch_}, {"seconds", seconds},
                        {"knn_k", result.knn.best().k}, {"knn_top1", result.knn.best().accuracy.top1}};
    if (result.linear) line["linear_top1"] = result.linear->best().accuracy.top1;
    run_->metrics()->write(line);
    context_.log.info("Iteration {} ({} images): k-NN {:.2f} %{}, in {:.1f} s", iteration, iteration * batch_,
                      100 * result.knn.best().accuracy.top1,
                      result.linear ? fmt::format(", linear {:.2f} %", 100 * result.linear->best().accuracy.top1) : "",
                      seconds);
    return true;
  }

 private:
  Context& context_;
  RunDirectory* run_ = nullptr;
  std::int64_t batch_;
  evaluation::EvaluateConfig config_;
  std::shared_ptr<const data::Dataset> train_, test_;
  features::KeptViews views_{kKeptBytes};
};

/// Collective. The sources of train.dataset_path, one after the other; keys begin with a source's number where there
/// are several.
std::shared_ptr<const data::Dataset> open_training_images(Context& context, data::LoaderConfig& loader) {
  const auto& sources = context.options.get<std::vector<std::string>>("train.dataset_path");
  const auto joined = std::make_shared<data::Joined>();
  for (std::size_t i = 0; i < sources.size(); ++i) {
    joined->add(sources.size() == 1 ? "" : std::to_string(i + 1),
                open_images(context, sources[i], data::Labels::ignored));
  }
  loader.source_sizes = joined->sizes();
  comm::coordinate(context.world, [&] { data::Sampler(loader.source_sizes, loader.source_weights, 0); });  // its errors
  return joined;
}

/// Collective. Remembers in the run's folder which images it was started on, and refuses others: a schedule that was
/// half done on one set would be finished on another.
void require_same_images(Context& context, const std::filesystem::path& directory, const data::Dataset& images) {
  const std::string identity = identify(context, images);
  comm::coordinate(context.world, [&] {
    if (context.world.rank() != 0) return;
    const std::filesystem::path file = directory / "training_set.json";
    if (!std::filesystem::exists(file)) {
      const nlohmann::json record{{"identity", identity}, {"images", images.size()}};
      core::write_atomically(file, record.dump(2) + "\n");
      return;
    }
    const nlohmann::json before = nlohmann::json::parse(core::read_text(file), nullptr, false);
    if (before.is_object() && before.value("identity", "") == identity) return;
    throw core::UsageError(fmt::format(
        "{} was started on another training set: {} images then, {} now, or other ones. Give the former images, or "
        "another output folder; to train anew in this one, remove it.",
        directory.string(), before.is_object() ? before.value("images", std::int64_t{0}) : 0, images.size()));
  });
}

class PretrainJob final : public Job {
 public:
  std::string_view name() const override { return "pretrain"; }
  std::string_view summary() const override { return "pretrain a vision transformer on images without labels"; }
  void declare(core::Options& options) const override {
    declare_run_options(options);
    declare_source_options(options);
    declare_pretrain_options(options);
    declare_evaluate_options(options);
  }
  Outcome run(Context& context) const override { return pretrain(context); }
};

}  // namespace

void declare_pretrain_options(core::Options& options) {
  train::declare_options(options);
  options
      .add(kEvaluatePeriod, std::int64_t{0},
           "Iterations between evaluations of the teacher on evaluate.train and evaluate.test; 0 = none. Their images "
           "are decoded once, as far as they take at most 1 GiB of a rank's memory (at evaluate.crop = 224: 7000)",
           core::OptionKind::free)
      .at_least(0);
  options.add(kEvaluateLinear, false,
              "Evaluations on the way train the linear probe too, not only k-NN (with evaluate.linear)",
              core::OptionKind::free);
  options
      .add(kDryRunRanks, std::int64_t{0}, "With --dry-run: the plan for this many ranks; 0 = those that are running",
           core::OptionKind::free)
      .at_least(0)
      .fits_int();
  declare_device_option(options, "train.device");
}

train::TrainConfig pretrain_config(const core::Options& options, int ranks, std::optional<std::int64_t> batch_size) {
  train::TrainConfig config = train::read_config(options, ranks, batch_size);
  if (options.integer(kEvaluatePeriod) > 0 && options.text("evaluate.train").empty()) {
    throw core::UsageError(
        fmt::format("{} is given, but evaluate.train is not: name labelled images as evaluate.train and evaluate.test.",
                    kEvaluatePeriod));
  }
  check_evaluate_options(options, config.network.backbone.patch_size);
  return config;
}

Outcome pretrain(Context& context) {
  comm::Communicator& world = context.world;
  const core::Options& options = context.options;
  const std::int64_t found = comm::on_root(
      world, [&] { return train::batch_size_of_run(options.path("output") / "checkpoints").value_or(0); });
  const std::optional<std::int64_t> former = found > 0 ? std::optional(found) : std::nullopt;
  if (context.dry_run) {
    const int ranks = options.small_integer(kDryRunRanks);
    const int planned = ranks > 0 ? ranks : world.size();
    comm::coordinate(world, [&] {
      const train::TrainConfig config = train::read_config(options, planned, former);
      std::optional<train::NetworkConfig> teacher;
      if (!config.distilled_from.empty()) teacher = train::network_of_checkpoint(config.distilled_from);
      context.log.info("{}", train::describe(train::plan(config, planned, teacher ? &*teacher : nullptr)));
    });
    return Outcome::complete;
  }
  // Before the output directory is opened, so that a mistake does not become its configuration.
  train::TrainConfig config = comm::coordinate(world, [&] {
    if (options.get<std::vector<std::string>>("train.dataset_path").empty())
      throw core::UsageError("train.dataset_path is not given: name a folder of images, or another source.");
    return pretrain_config(options, world.size(), former);
  });
  config.loader.max_rejected = options.number("run.max_rejected");
  const int workers = options.small_integer("train.num_workers");
  config.loader.workers = workers > 0 ? workers : context.threads;
  const auto dataset = open_training_images(context, config.loader);
  const auto evaluation =
      options.integer(kEvaluatePeriod) > 0 ? std::make_shared<OnlineEvaluation>(context, config.batch_size) : nullptr;
  RunDirectory run(context, "pretrain", options.path("output"));
  RejectedList rejected(context, run.path());
  rejected.add_problems(*dataset);
  rejected.judge(0, config.loader.max_rejected);  // problems of the sources, before days of training
  require_same_images(context, run.path(), *dataset);
  config.loader.reject = [&](const std::string& key, const std::string& reason) { rejected.add(key, reason); };
  ComputeDevice device(context, "train.device");
  config.units.device = device.device();
  config.loader.pinned = config.units.device.is_cuda();
  if (config.units.device.is_cuda()) config.network.fast_products = false;  // a GPU has TF32

  train::LoopContext loop{world,        device.group(),   context.log, run.metrics(),
                          context.stop, context.watchdog, run.path()};
  if (evaluation) {
    loop.evaluate_period = options.integer(kEvaluatePeriod);
    evaluation->write_to(run);
    loop.evaluate = [evaluation](std::int64_t iteration, const model::VisionTransformer& teacher) {
      return (*evaluation)(iteration, teacher);
    };
    loop.evaluated = [evaluation](std::int64_t iteration) { return evaluation->done(iteration); };
  }
  const train::LoopResult result = train::pretrain(loop, config, dataset);
  comm::coordinate(world, [&] {
    if (world.rank() == 0) write_curves(run.path() / "metrics.jsonl", run.path() / "results" / kCurvesFile);
  });
  if (result.stopped_before) {
    context.log.info(
        "Nothing to do: iteration {} is reached, and train.stop_at is {}. Raise it, or leave it out, to go on.",
        result.iterations, config.stop_at);
    return Outcome::complete;
  }

  if (result.preempted) {
    context.log.info("Stopped on request after iteration {}; the same command continues from there.",
                     result.iterations);
    return Outcome::preempted;
  }
  // Ranks meet the same file only in different epochs, by when together they have met all.
  const std::int64_t seen = std::min(world.sum(result.distinct_seen), dataset->size());
  rejected.judge(world.rank() == 0 ? seen : 0, config.loader.max_rejected);
  comm::coordinate(world, [&] {
    if (world.rank() == 0) model::save_backbone(run.path() / kTeacherFile, *model::load_backbone(result.checkpoint));
  });
  context.log.info("Done: {} iterations. The teacher's backbone is in {}.", result.iterations,
                   (run.path() / kTeacherFile).string());
  return Outcome::complete;
}

std::unique_ptr<Job> make_pretrain_job() {
  return std::make_unique<PretrainJob>();
}

}  // namespace allosaur::jobs
