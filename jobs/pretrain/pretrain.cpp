#include "jobs/pretrain/pretrain.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "data/joined.hpp"
#include "data/sampler.hpp"
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
constexpr const char* kDryRunRanks = "dry-run.ranks";

/// k-NN (and, where asked for, linear) accuracy of the teacher while it is trained, next to the losses in
/// metrics.jsonl.
class OnlineEvaluation {
 public:
  OnlineEvaluation(Context& context, core::MetricsLog* metrics, std::int64_t batch)
      : context_(context),
        metrics_(metrics),
        batch_(batch),
        config_(evaluate_config(context.options, context.threads)),
        train_(open_images(context, context.options.path("evaluate.train"), data::Labels::required)),
        test_(open_images(context, context.options.path("evaluate.test"), data::Labels::required)) {}

  void operator()(std::int64_t iteration, const model::VisionTransformer& teacher) {
    evaluation::Hooks hooks;
    hooks.progress = [this](auto...) { context_.watchdog.feed(); };
    const evaluation::EvaluateResult result =
        evaluation::evaluate_backbone(context_.world, teacher, *train_, *test_, config_, hooks);
    if (context_.world.rank() != 0) return;
    nlohmann::json line{{"phase", "evaluate"},
                        {"iteration", iteration},
                        {"images", iteration * batch_},
                        {"knn_k", result.knn.best().k},
                        {"knn_top1", result.knn.best().accuracy.top1}};
    if (result.linear) line["linear_top1"] = result.linear->best().accuracy.top1;
    metrics_->write(line);
    context_.log.info("Iteration {} ({} images): k-NN {:.2f} %{}", iteration, iteration * batch_,
                      100 * result.knn.best().accuracy.top1,
                      result.linear ? fmt::format(", linear {:.2f} %", 100 * result.linear->best().accuracy.top1) : "");
  }

 private:
  Context& context_;
  core::MetricsLog* metrics_;
  std::int64_t batch_;
  evaluation::EvaluateConfig config_;
  std::shared_ptr<const data::Dataset> train_, test_;
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
           "Iterations between evaluations of the teacher on evaluate.train and evaluate.test; 0 = none",
           core::OptionKind::free)
      .at_least(0);
  options
      .add(kDryRunRanks, std::int64_t{0}, "With --dry-run: the plan for this many ranks; 0 = those that are running",
           core::OptionKind::free)
      .at_least(0);
  options
      .add("train.device", std::string("auto"), "cpu, cuda (a GPU a rank), or auto: cuda where every rank has one",
           core::OptionKind::free)
      .one_of({"auto", "cpu", "cuda"});
}

Outcome pretrain(Context& context) {
  comm::Communicator& world = context.world;
  const core::Options& options = context.options;
  if (context.dry_run) {
    const int ranks = options.small_integer(kDryRunRanks);
    const int planned = ranks > 0 ? ranks : world.size();
    comm::coordinate(world, [&] {
      context.log.info("{}", train::describe(train::plan(train::read_config(options, planned), planned)));
    });
    return Outcome::complete;
  }
  // Before the output directory is opened, so that a mistake does not become its configuration.
  train::TrainConfig config = comm::coordinate(world, [&] {
    if (options.get<std::vector<std::string>>("train.dataset_path").empty())
      throw core::UsageError("train.dataset_path is not given: name a folder of images, or another source.");
    return train::read_config(options, world.size());
  });
  config.loader.max_rejected = options.number("run.max_rejected");
  const std::int64_t workers = options.integer("train.num_workers");
  config.loader.workers = workers > 0 ? static_cast<int>(workers) : context.threads;
  const auto dataset = open_training_images(context, config.loader);
  RunDirectory run(context, "pretrain", options.path("output"));
  RejectedList rejected(context, run.path());
  rejected.add_problems(*dataset);
  rejected.judge(0, config.loader.max_rejected);  // problems of the sources, before days of training
  config.loader.reject = [&](const std::string& key, const std::string& reason) { rejected.add(key, reason); };
  ComputeDevice device(context, options.text("train.device"));
  config.units.device = device.device();
  config.loader.pinned = config.units.device.is_cuda();

  train::LoopContext loop{world,        device.group(),   context.log, run.metrics(),
                          context.stop, context.watchdog, run.path()};
  loop.evaluate_period = options.integer(kEvaluatePeriod);
  if (loop.evaluate_period > 0) {
    auto evaluation = std::make_shared<OnlineEvaluation>(context, run.metrics(), config.batch_size);
    loop.evaluate = [evaluation](std::int64_t iteration, const model::VisionTransformer& teacher) {
      (*evaluation)(iteration, teacher);
    };
  }
  const train::LoopResult result = train::pretrain(loop, config, dataset);

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
