#include "train/loop.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <span>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/memory.hpp"
#include "model/fused.hpp"
#include "model/weights.hpp"
#include "train/crops.hpp"
#include "train/measure.hpp"
#include "train/plan.hpp"

namespace allosaur::train {

namespace {

constexpr std::int64_t kMeasured = 10;  // iterations after which the plan is compared with what was measured

/// What is said of weights from images of another size.
std::string resized(const model::VitConfig& from, const model::VitConfig& to) {
  if (from.grid() == to.grid()) return "";
  return fmt::format(" Their position embeddings are resized from {0} x {0} to {1} x {1} patches.", from.grid(),
                     to.grid());
}

/// The student at its initial values, or with given weights; the teacher equal to it, or as a given checkpoint says.
void initialise(Network& student, Network& teacher, const TrainConfig& config, LoopContext& context) {
  for (const NetworkParameter& parameter : student.parameters())
    model::initialise(parameter.parameter, parameter.prefix, config.seed);
  if (!config.pretrained_weights.empty()) {
    const std::string note = comm::coordinate(context.group, [&] {
      const auto backbone = model::load_backbone(config.pretrained_weights);
      model::require_channels(backbone->config(), config.network.backbone.in_channels, config.pretrained_weights);
      io::NamedTensors tensors;
      for (const model::Parameter& parameter : backbone->parameters())
        tensors.emplace_back(parameter.name, *parameter.tensor);
      model::resize_positions(tensors, "", config.network.backbone);
      model::assign(student.backbone().parameters(), tensors, config.pretrained_weights);
      return resized(backbone->config(), config.network.backbone);
    });
    context.log.info("The backbone starts from {}, the heads from their initial values.{}", config.pretrained_weights,
                     note);
  }
  const auto from = student.parameters(), to = teacher.parameters();
  for (std::size_t i = 0; i < from.size(); ++i) to[i].parameter.tensor->copy_(*from[i].parameter.tensor);
  if (!config.start_from.empty()) {
    const model::VitConfig theirs =
        comm::coordinate(context.group, [&] { return start_from_checkpoint(config.start_from, student, teacher); });
    context.log.info("Student, teacher and heads start from {}; the optimiser starts anew.{}", config.start_from,
                     resized(theirs, config.network.backbone));
  }
}

/// The frozen network to distil, in the compute type on the device; none where the EMA teaches.
struct FrozenTeacher {
  std::unique_ptr<Network> network;
  std::string fingerprint;
};

FrozenTeacher frozen_teacher(const TrainConfig& config, LoopContext& context) {
  if (config.distilled_from.empty()) return {};
  FrozenTeacher teacher = comm::coordinate(context.group, [&] {
    auto network = load_teacher(config.distilled_from, config.network.fast_products);
    const NetworkConfig &theirs = network->config(), &ours = config.network;
    const auto refuse = [&](const char* what, const auto& their_value, const auto& our_value) {
      if (their_value != our_value)
        throw core::UsageError(fmt::format("The teacher in {} has {} {}, the student {}: they must be the same.",
                                           config.distilled_from, what, their_value, our_value));
    };
    refuse("data.channels", theirs.backbone.in_channels, ours.backbone.in_channels);
    refuse("student.patch_size", theirs.backbone.patch_size, ours.backbone.patch_size);
    refuse("ibot.separate_head", theirs.separate_ibot_head, ours.separate_ibot_head);
    refuse("dino.head_n_prototypes", theirs.dino_head.prototypes, ours.dino_head.prototypes);
    if (ours.separate_ibot_head)
      refuse("ibot.head_n_prototypes", theirs.ibot_head.prototypes, ours.ibot_head.prototypes);
    std::string fingerprint = model::fingerprint(network->backbone());
    return FrozenTeacher{std::move(network), std::move(fingerprint)};
  });
  for (const NetworkParameter& parameter : teacher.network->parameters())
    *parameter.parameter.tensor =
        parameter.parameter.tensor->to(config.units.device, scalar_type(config.units.precision));
  context.log.info("Distilling the frozen teacher of {}; the result is the EMA of the student.", config.distilled_from);
  return teacher;
}

/// Signs of collapse worth a line in log and metrics; each is said once.
class CollapseWatch {
 public:
  CollapseWatch(LoopContext& context, std::int64_t prototypes)
      : context_(context), log_prototypes_(std::log(static_cast<double>(prototypes))) {}
  /// `iterations` are done.
  void look(std::int64_t iterations, const StepResult& result) {
    if (iterations <= 100) return;  // centring and warm-up have to take hold first
    if (result.targets->marginal < 0.1 * log_prototypes_ && !said_prototypes_) {
      said_prototypes_ = true;
      warn(iterations,
           fmt::format("the teacher uses hardly any of its prototypes (entropy of the mean target {:.2f} of {:.2f}); "
                       "the representation may be collapsing. Look at teacher temperature, centring and learning rate.",
                       std::max(0.0, result.targets->marginal), log_prototypes_));
    }
    if (result.feature_rank < 2 && !said_rank_) {
      said_rank_ = true;
      warn(iterations,
           fmt::format("the teacher's class tokens use about {:.1f} directions; the representation may be collapsing. "
                       "Look at learning rate, KoLeo weight and augmentation.",
                       result.feature_rank));
    }
  }

 private:
  void warn(std::int64_t iterations, const std::string& text) {
    context_.log.warning("Iteration {}: {}", iterations, text);
    if (context_.metrics) context_.metrics->write({{"phase", "warning"}, {"iteration", iterations}, {"warning", text}});
  }

  LoopContext& context_;
  double log_prototypes_;
  bool said_prototypes_ = false, said_rank_ = false;
};

StepInput assemble(const TrainConfig& config, const CropFinisher& finish, const data::Batch& batch,
                   std::int64_t iteration, int rank, int ranks) {
  StepInput input;
  input.group = config.group;
  input.schedule = schedule_at(config, iteration);
  const std::int64_t images = config.batch_size / ranks, locals = config.loader.augment.local_crops_number;
  const auto on_device = [&](const at::Tensor& tensor) {
    return tensor.defined() ? model::to_device(tensor, config.units.device) : tensor;
  };
  const at::Tensor global_crops = on_device(batch.global_crops), global_recipes = on_device(batch.global_recipes),
                   local_crops = on_device(batch.local_crops), local_recipes = on_device(batch.local_recipes);
  // Images [first, first + n) of every crop, crop-major.
  const auto part = [&](const at::Tensor& crops, std::int64_t count, std::int64_t first) {
    if (config.micro_batch == images || !crops.defined()) return crops;
    return crops.unflatten(0, {count, images}).narrow(1, first, config.micro_batch).flatten(0, 1);
  };
  for (std::int64_t first = 0; first < images; first += config.micro_batch) {
    const auto finished = [&](const at::Tensor& crops, const at::Tensor& recipes, std::int64_t count) {
      const at::Tensor values = part(crops, count, first);
      return config.loader.augment.finish ? values : finish(values, part(recipes, count, first));
    };
    MicroBatch micro;
    micro.global_crops = finished(global_crops, global_recipes, 2);
    if (locals > 0) micro.local_crops = finished(local_crops, local_recipes, locals);
    const at::Tensor masks = part(batch.masks, 2, first);
    micro.masks = config.objective.mask_input ? masks : at::ones_like(masks);
    GroupedRows rows{config.micro_batch, 2, config.group,
                     (iteration * config.batch_size + rank * images + first) / config.group};
    micro.kept_global = kept_rows(config.drop_path_rates, rows, config.seed, 0);
    rows.crops = locals;
    micro.kept_local = kept_rows(config.drop_path_rates, rows, config.seed, 1);
    input.batches.push_back(std::move(micro));
  }
  return input;
}

/// Iterations whose losses or gradients are not finite: written down with the samples they saw, and too many in a row
/// end the run.
class BadIterations {
 public:
  BadIterations(LoopContext& context, std::int64_t limit) : context_(context), limit_(limit) {}

  /// Collective, with the same result on all ranks. `iteration` counts from one.
  void look(std::int64_t iteration, const StepResult& step, const std::vector<std::string>& keys) {
    if (step.verdict == StepVerdict::updated) in_a_row_ = 0;
    if (step.verdict != StepVerdict::not_finite) return;
    const std::vector<std::string> samples = context_.group.gather_all(fmt::format("{}", fmt::join(keys, "\n")));
    const std::string losses =
        fmt::format("DINO local {:.4g}, DINO global {:.4g}, iBOT {:.4g}, KoLeo {:.4g}; gradient norms {:.4g}",
                    step.dino_local, step.dino_global, step.ibot, step.koleo, fmt::join(step.gradient_norm, ", "));
    comm::coordinate(context_.group, [&] {
      if (context_.metrics)
        context_.metrics->write(
            {{"phase", "not_finite"}, {"iteration", iteration}, {"losses", losses}, {"samples", samples}});
    });
    ++in_a_row_;
    context_.log.warning("Iteration {} is not finite and was skipped: {}; metrics.jsonl names its samples.", iteration,
                         losses);
    if (in_a_row_ > limit_)
      throw core::NumericalError(fmt::format(
          "{} iterations in a row are not finite, the last is {}: {}. Lower optim.base_lr, or look at the images that "
          "metrics.jsonl names; the last checkpoint is intact.",
          in_a_row_, iteration, losses));
  }

 private:
  LoopContext& context_;
  std::int64_t limit_, in_a_row_ = 0;
};

/// Sums over the iterations since the last line of the log.
struct Window {
  using Clock = std::chrono::steady_clock;
  Clock::time_point start = Clock::now();
  std::int64_t iterations = 0, overflows = 0, not_finite = 0;
  double data = 0;  // seconds waiting for the loader
  StepSeconds step;

  void add(const StepResult& result) {
    ++iterations;
    if (result.verdict == StepVerdict::overflowed) ++overflows;
    if (result.verdict == StepVerdict::not_finite) ++not_finite;
    const StepSeconds& s = result.seconds;
    step.gather += s.gather;
    step.teacher += s.teacher;
    step.forward += s.forward;
    step.backward += s.backward;
    step.reduce += s.reduce;
    step.update += s.update;
  }
  double elapsed() const { return std::chrono::duration<double>(Clock::now() - start).count(); }
};

nlohmann::json metrics_line(const TrainConfig& config, std::int64_t iterations, const ScheduleValues& schedule,
                            const StepResult& step, const Window& window, const Plan& planned, double rate) {
  const double elapsed = window.elapsed(), count = static_cast<double>(window.iterations);
  const double work = (planned.teacher.total() + planned.student.total()) * static_cast<double>(planned.images) * count;
  nlohmann::json line{{"iteration", iterations},
                      {"images", iterations * config.batch_size},
                      {"total_loss", step.total},
                      {"dino_local_crops_loss", step.dino_local},
                      {"dino_global_crops_loss", step.dino_global},
                      {"ibot_loss", step.ibot},
                      {"koleo_loss", step.koleo},
                      {"lr", schedule.lr},
                      {"wd", schedule.weight_decay},
                      {"mom", schedule.momentum},
                      {"teacher_temp", schedule.teacher_temperature},
                      {"last_layer_lr", schedule.last_layer_lr},
                      {"loss_scale", step.loss_scale},
                      {"overflows", window.overflows},    // of float16, since the last line
                      {"not_finite", window.not_finite},  // skipped iterations, since the last line
                      {"grad_norm_backbone", step.gradient_norm[0]},
                      {"grad_norm_dino_head", step.gradient_norm[1]},
                      {"grad_norm_ibot_head", step.gradient_norm[2]},
                      {"teacher_entropy", step.targets->entropy},
                      {"teacher_marginal_entropy", step.targets->marginal},
                      {"feature_rank", step.feature_rank},
                      {"images_per_second", count * static_cast<double>(config.batch_size) / elapsed},
                      {"data_wait", window.data / elapsed},
                      {"flops_per_second", work / elapsed},  // of one rank
                      {"utilisation", work / elapsed / rate},
                      {"seconds_iteration", elapsed / count},
                      {"seconds_gather", window.step.gather / count},
                      {"seconds_teacher", window.step.teacher / count},
                      {"seconds_forward", window.step.forward / count},
                      {"seconds_backward", window.step.backward / count},
                      {"seconds_reduce", window.step.reduce / count},
                      {"seconds_update", window.step.update / count},
                      {"peak_memory_bytes", peak_memory_bytes(config.units.device)}};
  if (!config.units.device.is_cpu()) line["peak_host_memory_bytes"] = peak_memory_bytes(at::kCPU);
  return line;
}

}  // namespace

LoopResult pretrain(LoopContext& context, const TrainConfig& config, std::shared_ptr<const data::Dataset> dataset) {
  comm::Communicator& group = context.group;
  const at::Device device = config.units.device;
  const double memory_before = peak_memory_bytes(device);
  core::return_freed_memory();  // the networks' own parameters, once they are in the units
  const FrozenTeacher frozen = frozen_teacher(config, context);
  Checkpoints checkpoints(group, context.directory / "checkpoints", {config.batch_size, frozen.fingerprint},
                          context.log, context.watchdog);
  Network student(config.network), ema(config.network);
  if (!checkpoints.any()) initialise(student, ema, config, context);  // else the checkpoint fills them
  Units units(context.device_group, student, ema, config.units);
  Trainer trainer(group, context.device_group, student, frozen.network ? *frozen.network : ema, units, config.objective,
                  config.units);

  LoopResult result;
  const auto save = [&](std::int64_t iteration) {
    checkpoints.save(iteration, config, units, trainer.state());
    result.checkpoint = checkpoints.folder(iteration);
  };
  const auto evaluation_due = [&] {
    return context.evaluate_period > 0 &&
           (result.iterations % context.evaluate_period == 0 || result.iterations == config.iterations);
  };
  const auto evaluate = [&] {
    units.wait_for_teacher();
    result.preempted = !context.evaluate(result.iterations, ema.backbone());
  };
  const std::optional<std::int64_t> restored = checkpoints.restore(units, trainer.state());
  if (restored) {
    result.iterations = *restored;
    result.checkpoint = checkpoints.folder(*restored);
    context.log.info("Continuing from the checkpoint of iteration {}.", *restored);
  } else {
    save(0);  // the network at initialisation, to compare with
  }
  core::keep_freed_memory();
  comm::coordinate(group, [&] {
    if (context.metrics) context.metrics->show_in_tensorboard(context.directory / "tensorboard", result.iterations);
  });
  // A run that was stopped, or broke off, before it evaluated its last checkpoint does so now.
  if (evaluation_due() && !(restored && context.evaluated(result.iterations))) evaluate();
  if (result.preempted) {
    checkpoints.finish();
    return result;
  }
  if (config.stop_at > 0 && result.iterations >= config.stop_at && result.iterations < config.iterations) {
    result.stopped_before = true;
    checkpoints.finish();
    return result;
  }
  context.log.info(
      "Pretraining {:.1f} M parameters a network, {} images an iteration on {} ranks, {} of {} iterations to go; "
      "linear layers in {}.",
      static_cast<double>(units.parameter_count()) * 1e-6, config.batch_size, group.size(),
      config.iterations - result.iterations, config.iterations,
      config.network.fast_products ? "bfloat16 with float32 sums" : name_of(config.units.precision));

  const Plan planned = plan(config, group.size(), frozen.network ? &frozen.network->config() : nullptr);
  const double rate = matrix_rate(config.units, config.network.fast_products);
  context.log.info("{}", describe(planned));
  context.log.info("Large products run at {:.1f} GFLOP/s on a rank; utilisation is the share of that.", rate * 1e-9);

  const std::int64_t first_iteration = result.iterations, first_bytes = context.device_group.traffic().bytes_sent;
  const CropFinisher finish(config.loader.augment, config.units.device);
  data::Loader loader(std::move(dataset), config.loader, group.rank(), group.size(), result.iterations);
  core::Progress progress(context.log, "pretrain", config.iterations, "iterations", result.iterations);
  CollapseWatch collapse(context, config.network.dino_head.prototypes);
  BadIterations bad(context, config.max_bad_iterations);
  Window window;
  while (result.iterations < config.iterations && !result.preempted) {
    context.watchdog.feed();
    const auto data_start = Window::Clock::now();
    const data::Batch batch = loader.next();
    window.data += std::chrono::duration<double>(Window::Clock::now() - data_start).count();

    const std::int64_t iteration = result.iterations;
    StepInput input = assemble(config, finish, batch, iteration, group.rank(), group.size());
    // A checkpoint that could not be written ends the run too: save() below throws what went wrong with it.
    input.stop_requested = context.stop.requested() || checkpoints.failed();
    input.statistics = iteration % config.log_period == 0 || iteration + 1 == config.iterations;
    const StepResult step = trainer.run(input);
    result.iterations = iteration + 1;
    bad.look(result.iterations, step, batch.keys);
    if (step.verdict == StepVerdict::overflowed)
      context.log.info(
          "Iteration {}: gradients overflow float16; the student is not updated, and the loss scale falls to {}.",
          result.iterations, trainer.state().loss_scale);
    window.add(step);
    if (result.iterations == first_iteration + kMeasured)
      context.log.info(
          "Measured over {} iterations: {:.4g} GB of memory beside the {:.4g} GB before (planned {:.4g}); {:.4g} GB "
          "sent an iteration (planned {:.4g}).",
          kMeasured, (peak_memory_bytes(device) - memory_before) * 1e-9, memory_before * 1e-9,
          static_cast<double>(device.is_cpu() ? planned.memory.total() : planned.memory.on_device()) * 1e-9,
          static_cast<double>(context.device_group.traffic().bytes_sent - first_bytes) * 1e-9 / kMeasured,
          static_cast<double>(planned.sent.total()) * 1e-9);
    result.preempted =
        (step.stop_requested || result.iterations == config.stop_at) && result.iterations < config.iterations;

    if (input.statistics && step.verdict == StepVerdict::updated) {
      collapse.look(result.iterations, step);
      group.all_reduce(std::span<double>(&window.data, 1), comm::ReduceOp::max);  // the slowest loader holds up all
      const nlohmann::json line = metrics_line(config, result.iterations, input.schedule, step, window, planned, rate);
      if (context.metrics) context.metrics->write(line);
      progress.update(result.iterations, fmt::format("loss {:.3f}, {:.0f} images/s, data wait {:.0f} %", step.total,
                                                     line.at("images_per_second").get<double>(),
                                                     100 * line.at("data_wait").get<double>()));
      window = {};
    }
    const bool saved =
        result.iterations % config.checkpoint_period == 0 || result.iterations == config.iterations || result.preempted;
    if (saved) save(result.iterations);
    if (!result.preempted && evaluation_due()) {
      evaluate();
      if (result.preempted && !saved) save(result.iterations);
      window = {};
    }
  }
  progress.finish();
  units.wait_for_teacher();
  units.wait_for_student();
  checkpoints.finish();
  result.distinct_seen = loader.distinct_seen();
  return result;
}

}  // namespace allosaur::train
