#include "train/loop.hpp"

#include <chrono>
#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "model/weights.hpp"

namespace allosaur::train {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// The student at its initial values, or with a given backbone; the teacher equal to it.
void initialise(Network& student, Network& teacher, const TrainConfig& config, LoopContext& context) {
  for (const NetworkParameter& parameter : student.parameters())
    model::initialise(parameter.parameter, parameter.prefix, config.seed);
  if (!config.pretrained_weights.empty()) {
    comm::coordinate(context.group, [&] {
      const auto backbone = model::load_backbone(config.pretrained_weights);
      io::NamedTensors tensors;
      for (const model::Parameter& parameter : backbone->parameters()) tensors.emplace_back(parameter.name, *parameter.tensor);
      model::assign(student.backbone().parameters(), tensors, config.pretrained_weights);
    });
    context.log.info("The backbone starts from {}, the heads from their initial values.", config.pretrained_weights);
  }
  const auto from = student.parameters(), to = teacher.parameters();
  for (std::size_t i = 0; i < from.size(); ++i) to[i].parameter.tensor->copy_(*from[i].parameter.tensor);
}

/// Signs of collapse worth a line in the log; each is said once.
class CollapseWatch {
 public:
  CollapseWatch(core::Log& log, std::int64_t prototypes) : log_(log), log_prototypes_(std::log(static_cast<double>(prototypes))) {}
  void look(std::int64_t iteration, const StepResult& result) {
    if (iteration < 100) return;  // centring and warm-up have to take hold first
    if (result.targets->marginal < 0.1 * log_prototypes_ && !said_prototypes_) {
      said_prototypes_ = true;
      log_.warning("Iteration {}: the teacher uses hardly any of its prototypes (entropy of the mean target {:.2f} of {:.2f}); the "
                   "representation may be collapsing. Look at teacher temperature, centring and learning rate.",
                   iteration, result.targets->marginal, log_prototypes_);
    }
    if (result.feature_rank < 2 && !said_rank_) {
      said_rank_ = true;
      log_.warning("Iteration {}: the teacher's class tokens use about {:.1f} directions; the representation may be collapsing. "
                   "Look at learning rate, KoLeo weight and augmentation.", iteration, result.feature_rank);
    }
  }

 private:
  core::Log& log_;
  double log_prototypes_;
  bool said_prototypes_ = false, said_rank_ = false;
};

StepInput assemble(const TrainConfig& config, const data::Batch& batch, std::int64_t iteration, int rank, int ranks) {
  StepInput input;
  input.global_crops = batch.global_crops;
  input.local_crops = batch.local_crops;
  input.masks = batch.masks;
  input.group = config.group;
  input.iteration = iteration;
  input.update = iteration + 1;
  input.schedule = schedule_at(config, iteration);
  const std::int64_t images = config.batch_size / ranks, groups = images / config.group;
  GroupedRows rows{images, 2, config.group, (iteration * ranks + rank) * groups};
  input.kept_global = kept_rows(config.drop_path_rates, rows, config.seed, 0);
  rows.crops = config.loader.augment.local_crops_number;
  input.kept_local = kept_rows(config.drop_path_rates, rows, config.seed, 1);
  return input;
}

}  // namespace

LoopResult pretrain(LoopContext& context, const TrainConfig& config, std::shared_ptr<const data::Dataset> dataset) {
  comm::Communicator& group = context.group;
  Network student(config.network), teacher(config.network);
  initialise(student, teacher, config, context);
  Units units(group, student, teacher, config.optimizer);
  Trainer trainer(group, student, teacher, units, config.objective, config.optimizer);
  Checkpoints checkpoints(group, context.directory / "checkpoints", context.log);

  LoopResult result;
  const auto save = [&](std::int64_t iteration) {
    checkpoints.save(iteration, config, units, trainer.centers());
    result.checkpoint = checkpoints.folder(iteration);
  };
  const auto evaluate = [&](std::int64_t iteration) {
    if (context.evaluate_period == 0) return;
    units.wait_for_weights();
    context.evaluate(iteration, teacher.backbone());
  };
  if (const auto restored = checkpoints.restore(units, trainer.centers())) {
    result.iterations = *restored;
    result.checkpoint = checkpoints.folder(*restored);
    context.log.info("Continuing from the checkpoint of iteration {}.", *restored);
  } else {
    save(0);  // the network at initialisation, to compare with
    evaluate(0);
  }
  context.log.info("Pretraining {:.1f} M parameters a network, {} images an iteration on {} ranks, {} of {} iterations to go; "
                   "linear layers in {}.",
                   static_cast<double>(units.parameter_count()) * 1e-6, config.batch_size, group.size(),
                   config.iterations - result.iterations, config.iterations,
                   config.network.fast_products ? "bfloat16 with float32 sums" : "float32");

  data::Loader loader(std::move(dataset), config.loader, group.rank(), group.size(), result.iterations);
  core::Progress progress(context.log, "pretrain", config.iterations, "iterations", result.iterations);
  CollapseWatch collapse(context.log, config.network.dino_head.prototypes);
  double data_seconds = 0;
  std::int64_t window = 0;
  Clock::time_point window_start = Clock::now();
  while (result.iterations < config.iterations && !result.preempted) {
    context.watchdog.feed();
    const Clock::time_point data_start = Clock::now();
    const data::Batch batch = loader.next();
    data_seconds += seconds_since(data_start);

    const std::int64_t iteration = result.iterations;
    StepInput input = assemble(config, batch, iteration, group.rank(), group.size());
    input.stop_requested = context.stop.requested();
    input.statistics = iteration % config.log_period == 0 || iteration + 1 == config.iterations;
    const StepResult step = trainer.run(input);
    result.iterations = iteration + 1;
    ++window;
    result.preempted = (step.stop_requested || result.iterations == config.stop_at) && result.iterations < config.iterations;

    if (input.statistics) {
      const double elapsed = seconds_since(window_start), rate = static_cast<double>(window * config.batch_size) / elapsed;
      collapse.look(iteration, step);
      if (context.metrics)
        context.metrics->write({{"iteration", result.iterations},
                                {"images", result.iterations * config.batch_size},
                                {"total_loss", step.total},
                                {"dino_local_crops_loss", step.dino_local},
                                {"dino_global_crops_loss", step.dino_global},
                                {"ibot_loss", step.ibot},
                                {"koleo_loss", step.koleo},
                                {"lr", input.schedule.lr},
                                {"wd", input.schedule.weight_decay},
                                {"mom", input.schedule.momentum},
                                {"teacher_temp", input.schedule.teacher_temperature},
                                {"last_layer_lr", input.schedule.last_layer_lr},
                                {"grad_norm_backbone", step.gradient_norm[0]},
                                {"grad_norm_dino_head", step.gradient_norm[1]},
                                {"grad_norm_ibot_head", step.gradient_norm[2]},
                                {"teacher_entropy", step.targets->entropy},
                                {"teacher_marginal_entropy", step.targets->marginal},
                                {"feature_rank", step.feature_rank},
                                {"images_per_second", rate},
                                {"data_wait", data_seconds / elapsed}});
      progress.update(result.iterations, fmt::format("loss {:.3f}, {:.0f} images/s, data wait {:.0f} %", step.total, rate,
                                                     100 * data_seconds / elapsed));
      window = 0;
      data_seconds = 0;
      window_start = Clock::now();
    }
    if (result.iterations % config.checkpoint_period == 0 || result.iterations == config.iterations || result.preempted)
      save(result.iterations);
    if (!result.preempted && context.evaluate_period > 0 &&
        (result.iterations % context.evaluate_period == 0 || result.iterations == config.iterations))
      evaluate(result.iterations);
  }
  progress.finish();
  units.wait_for_weights();
  result.rejected = loader.rejected();
  result.distinct_seen = loader.distinct_seen();
  return result;
}

}  // namespace allosaur::train
