#include "train/step.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "core/random.hpp"
#include "loss/koleo.hpp"
#include "model/fused.hpp"
#include "model/linear.hpp"

namespace allosaur::train {

namespace {

/// exp of the entropy of the spectrum: how many directions the features use (Roy & Vetterli, 2007).
double effective_rank(const at::Tensor& features) {
  const at::Tensor values = features.to(at::kDouble), centred = values - values.mean(0);
  const at::Tensor spectrum = at::linalg_eigvalsh(centred.size(0) < centred.size(1) ? at::mm(centred, centred.t())
                                                                                    : at::mm(centred.t(), centred))
                                  .clamp_min(0);
  const at::Tensor p = spectrum / spectrum.sum().clamp_min(1e-300);
  return std::exp(-at::xlogy(p, p).sum().item<double>());
}

/// Each masked patch weighs one over the masked patches of its image, and all `crops` count, masked or not
/// (dinov2/loss/ibot_patch_loss.py).
/// `masked`: i64 into [2n * N].
at::Tensor masked_weights(const at::Tensor& masks, const at::Tensor& masked, std::int64_t crops) {
  const at::Tensor per_crop = masks.sum(1).clamp_min(1).to(at::kFloat).mul_(static_cast<double>(crops)).reciprocal_();
  return per_crop.index_select(0, masked.floor_divide(masks.size(1)));
}

/// The iBOT centre moves to the mean over groups of each group's mean, whatever the numbers of masked patches
/// (dinov2/loss/ibot_patch_loss.py).
struct GroupMeans {
  at::Tensor sum;     // f32 [K], of the groups that have masked patches
  double groups = 0;  // their number
};

/// `logits` [masked patches, K], in the order of `masked`: for each micro-batch i64 into its [2n * N].
GroupMeans group_means(const StepInput& input, const std::vector<at::Tensor>& masked, const at::Tensor& logits) {
  GroupMeans means{at::zeros({logits.size(1)}, logits.options().dtype(at::kFloat))};
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < input.batches.size(); ++i) {
    const std::int64_t crops = input.batches[i].masks.size(0), images = crops / 2,
                       patches = input.batches[i].masks.size(1);
    // Where the rows of each crop begin: they are in the order of the crops.
    const at::Tensor first = at::searchsorted(masked[i], at::arange(0, (crops + 1) * patches, patches, at::kLong));
    const std::int64_t* row = first.const_data_ptr<std::int64_t>();
    for (std::int64_t image = 0; image < images; image += input.group) {
      at::Tensor sum;  // of the group's first crops, then of its second ones
      std::int64_t count = 0;
      for (const std::int64_t crop : {image, images + image}) {
        const std::int64_t rows = row[crop + input.group] - row[crop];
        if (rows == 0) continue;
        const at::Tensor part = logits.narrow(0, begin + row[crop], rows).sum(0, false, at::kFloat);
        sum = sum.defined() ? sum.add_(part) : part;
        count += rows;
      }
      if (count == 0) continue;
      means.sum.add_(sum, 1.0 / static_cast<double>(count));
      means.groups += 1;
    }
    begin += masked[i].size(0);
  }
  return means;
}

// Dynamic loss scaling of float16, with PyTorch's constants.
constexpr double kInitialScale = 65536;
constexpr std::int64_t kSteadyUpdates = 2000;

}  // namespace

/// Targets of all micro-batches, one after the other.
struct Trainer::TeacherTargets {
  loss::Targets dino;              // rows [2n] of each micro-batch, crop-major
  loss::Targets ibot;              // rows [masked patches]
  at::Tensor cls;                  // [2n, D], all
  std::vector<at::Tensor> masked;  // of each micro-batch: i64 [masked patches] into its [2n * N], in host memory
  std::int64_t images = 0;
  // Rows that the student passes have used up.
  std::int64_t dino_used = 0, ibot_used = 0;

  static loss::Targets take(const loss::Targets& all, std::int64_t& used, std::int64_t rows) {
    const std::int64_t first = std::exchange(used, used + rows);
    return {all.logits.narrow(0, first, rows), all.shift, all.temperature};
  }
};

/// Parts of the loss of one micro-batch, each already its share of the mean over this rank's images.
struct Trainer::Losses {
  at::Tensor total;   // f32 [], what is differentiated, times the loss scale and over the number of ranks
  at::Tensor values;  // f64 [5]: DINO local, DINO global, iBOT, KoLeo, total; detached
};

Trainer::Trainer(comm::Communicator& control, comm::Communicator& data, Network& student, Network& teacher,
                 Units& units, const ObjectiveConfig& objective, const UnitsConfig& config)
    : control_(control),
      data_(data),
      student_(student),
      teacher_(teacher),
      units_(units),
      objective_(objective),
      config_(config),
      state_{loss::Center(student.dino_head().config().prototypes, at::TensorOptions(config.device)),
             loss::Center(student.ibot_head().config().prototypes, at::TensorOptions(config.device))},
      clock_(config.device) {
  if (config.precision == Precision::float16) state_.loss_scale = kInitialScale;
}

Trainer::TeacherTargets Trainer::teacher_targets(const StepInput& input) {
  const at::NoGradGuard no_grad;
  const double temperature = input.schedule.teacher_temperature;
  TeacherTargets targets;
  std::int64_t masked_patches = 0;
  for (const MicroBatch& batch : input.batches) {
    targets.images += batch.masks.size(0) / 2;
    // Without weight, iBOT compares nothing.
    targets.masked.push_back(objective_.ibot_weight != 0 ? batch.masks.flatten().nonzero().flatten()
                                                         : at::empty({0}, at::kLong));
    masked_patches += targets.masked.back().size(0);
  }
  std::vector<at::Tensor> cls;          // a micro-batch each
  at::Tensor dino_logits, ibot_logits;  // of all, one micro-batch below the other
  at::Tensor dino_prototypes, ibot_prototypes;
  std::int64_t dino_rows = 0, ibot_rows = 0;
  for (std::size_t i = 0; i < input.batches.size(); ++i) {
    const model::VitOutput output =
        teacher_.backbone().forward_packed({{input.batches[i].global_crops, {}, {}, targets.masked[i]}}).front();
    if (i == 0) {
      if (config_.ema_teaches) units_.wait_for_teacher();
      dino_prototypes = teacher_.dino_head().prototypes().effective(output.cls.scalar_type());
      ibot_prototypes = teacher_.separate_ibot_head()
                            ? teacher_.ibot_head().prototypes().effective(output.cls.scalar_type())
                            : dino_prototypes;
      dino_logits = at::empty({2 * targets.images, dino_prototypes.size(0)}, output.cls.options());
      ibot_logits = at::empty({masked_patches, ibot_prototypes.size(0)}, output.cls.options());
    }
    const auto score = [](const model::ProjectionHead& head, const at::Tensor& tokens, const at::Tensor& prototypes,
                          at::Tensor& logits, std::int64_t& rows) {
      at::Tensor part = logits.narrow(0, rows, tokens.size(0));
      model::Products(false).write(part, head.embed(tokens), prototypes.t());
      rows += tokens.size(0);
    };
    score(teacher_.dino_head(), output.cls, dino_prototypes, dino_logits, dino_rows);
    score(teacher_.ibot_head(), output.patches, ibot_prototypes, ibot_logits, ibot_rows);
    cls.push_back(output.cls);
  }
  targets.cls = cls.size() == 1 ? cls.front() : at::cat(cls);
  if (objective_.centering == Centering::sinkhorn_knopp) {
    targets.dino = loss::sinkhorn_knopp(data_, dino_logits, temperature);
    targets.ibot = loss::sinkhorn_knopp(data_, ibot_logits, temperature);
    return targets;
  }
  targets.dino = loss::centre(dino_logits, state_.dino.value(), temperature);
  targets.ibot = loss::centre(ibot_logits, state_.ibot.value(), temperature);
  state_.dino.update(data_, dino_logits.sum(0, false, at::kFloat), static_cast<double>(dino_logits.size(0)));
  const GroupMeans ibot = group_means(input, targets.masked, ibot_logits);
  state_.ibot.update(data_, ibot.sum, ibot.groups);
  return targets;
}

Trainer::Losses Trainer::student_losses(const MicroBatch& batch, const at::Tensor& masked, TeacherTargets& teacher,
                                        std::int64_t group) {
  const std::int64_t images = batch.global_crops.size(0) / 2;
  const std::int64_t locals = batch.local_crops.defined() ? batch.local_crops.size(0) / images : 0;

  std::vector<model::VitInput> crops{
      {batch.global_crops, objective_.mask_input ? model::to_device(batch.masks, config_.device) : at::Tensor(),
       batch.kept_global, masked}};
  if (locals > 0) crops.push_back({batch.local_crops, {}, batch.kept_local, at::empty({0}, at::kLong)});
  const std::vector<model::VitOutput> student = student_.backbone().forward_packed(crops);
  units_.wait_for_student();
  const at::Tensor& global_cls = student[0].cls;  // [2n, D]
  const at::Tensor cls = locals > 0 ? at::cat({student[1].cls, global_cls}) : global_cls;
  const at::Tensor& patches = student[0].patches;  // [masked, D]

  // DINO: every local crop against both teacher crops, every global crop against the other one; all pairs weigh the
  // same.
  at::Tensor pairs = at::zeros({locals + 2, 2});
  pairs.narrow(0, 0, locals).fill_(1);
  pairs[locals][1] = 1;
  pairs[locals + 1][0] = 1;
  const auto terms = static_cast<double>(2 + 2 * locals), all_images = static_cast<double>(teacher.images);
  const loss::Comparison dino{TeacherTargets::take(teacher.dino, teacher.dino_used, 2 * images), pairs,
                              at::full({images}, 1.0 / (terms * all_images), cls.options().dtype(at::kFloat)),
                              objective_.dino_weight};
  const loss::Comparison ibot{TeacherTargets::take(teacher.ibot, teacher.ibot_used, masked.size(0)), at::ones({1, 1}),
                              model::to_device(masked_weights(batch.masks, masked, 2 * teacher.images), config_.device),
                              objective_.ibot_weight};
  // In one pass where class tokens and patches share a head.
  // The mean over ranks divides here, once, before the sum.
  const double scale = state_.loss_scale / control_.size();
  const auto compare = [&](const model::ProjectionHead& head, const at::Tensor& tokens,
                           const std::vector<loss::Comparison>& comparisons) {
    return loss::prototype_cross_entropy(head.embed(tokens), head.prototypes(), comparisons,
                                         {objective_.student_temperature, scale, student_.config().fast_products});
  };
  at::Tensor cross_entropy, dino_losses, ibot_losses;  // weighted; the losses by crop are not
  if (student_.separate_ibot_head()) {
    const loss::CrossEntropy of_cls = compare(student_.dino_head(), cls, {dino}),
                             of_patches = compare(student_.ibot_head(), patches, {ibot});
    cross_entropy = of_cls.total + of_patches.total;
    dino_losses = of_cls.per_crop[0];
    ibot_losses = of_patches.per_crop[0];
  } else {
    const loss::CrossEntropy both = compare(student_.dino_head(), at::cat({cls, patches}), {dino, ibot});
    cross_entropy = both.total;
    dino_losses = both.per_crop[0];
    ibot_losses = both.per_crop[1];
  }
  const auto halves = global_cls.chunk(2);
  const at::Tensor koleo =
      (loss::koleo(halves[0], group) + loss::koleo(halves[1], group)) * (static_cast<double>(images) / all_images);
  const at::Tensor total = cross_entropy + koleo * (objective_.koleo_weight * scale);
  return {total, at::stack({dino_losses.narrow(0, 0, locals).sum(), dino_losses.narrow(0, locals, 2).sum(),
                            ibot_losses.sum(), koleo.detach(), total.detach() / scale})
                     .to(at::kDouble)};
}

StepResult Trainer::run(const StepInput& input) {
  StepResult result;
  StepSeconds& seconds = result.seconds;
  clock_.begin();
  const loss::Center dino_center = state_.dino, ibot_center = state_.ibot;
  result.loss_scale = state_.loss_scale;
  const auto lap = [&](double StepSeconds::*section) {
    clock_.lap(section);
    const double waited = units_.take_waited();
    if (!config_.device.is_cpu()) return;  // the host waits for nothing there
    seconds.*section -= waited;
    seconds.gather += waited;
  };
  TeacherTargets teacher = teacher_targets(input);
  lap(&StepSeconds::teacher);

  at::Tensor values;
  for (std::size_t i = 0; i < input.batches.size(); ++i) {
    units_.begin_gradients(i == 0, i + 1 == input.batches.size());
    const Losses losses = student_losses(input.batches[i], teacher.masked[i], teacher, input.group);
    values = i == 0 ? losses.values : values + losses.values;
    if (i + 1 == input.batches.size()) {
      // The last gradients of scores are there: backward needs the memory of the logits.
      teacher.ibot = {};
      if (!input.statistics) teacher.dino = {};
    }
    lap(&StepSeconds::forward);
    losses.total.backward();
    clock_.lap(&StepSeconds::backward);
  }
  const std::array<double, kSubmodules> squares = units_.finish_backward();

  // One reduction carries the losses, the squared norms and the wish to stop.
  constexpr std::size_t kLosses = 5;
  std::array<double, kLosses + 1 + kSubmodules> sums{};
  values = values.cpu();
  for (std::size_t i = 0; i < kLosses; ++i) sums[i] = values.data_ptr<double>()[i] / control_.size();
  sums[kLosses] = input.stop_requested ? 1 : 0;
  std::ranges::copy(squares, sums.begin() + kLosses + 1);
  control_.all_reduce(std::span<double>(sums), comm::ReduceOp::sum);
  clock_.lap(&StepSeconds::reduce);
  clock_.read(seconds);

  result.dino_local = sums[0];
  result.dino_global = sums[1];
  result.ibot = sums[2];
  result.koleo = sums[3];
  result.total = sums[4];
  result.stop_requested = sums[kLosses] > 0;
  std::array<double, kSubmodules> scale{};
  bool finite = true;
  for (std::size_t i = 0; i < kSubmodules; ++i) {
    double& norm = result.gradient_norm[i];
    norm = std::sqrt(sums[kLosses + 1 + i]) / state_.loss_scale;
    finite = finite && std::isfinite(norm);
    const double clip = config_.optimizer.clip_grad;
    scale[i] = (clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1.0) / state_.loss_scale;
  }
  if (!finite || !std::isfinite(result.total)) {
    // Below a scale of one it is not the range of float16 that fails.
    const bool overflow = std::isfinite(result.total) && state_.loss_scale > 1;
    result.verdict = overflow ? StepVerdict::overflowed : StepVerdict::not_finite;
    state_.steady = 0;
    if (overflow) {
      state_.loss_scale /= 2;
      units_.update_teacher(input.schedule.momentum);
    } else {
      state_.dino = dino_center;
      state_.ibot = ibot_center;
    }
    return result;
  }
  if (input.statistics) {
    result.targets = loss::target_statistics(teacher.dino);
    result.feature_rank = effective_rank(teacher.cls);
    clock_.lap(&StepSeconds::teacher);
  }
  units_.update(input.schedule, scale, ++state_.updates);
  if (config_.precision == Precision::float16 && ++state_.steady == kSteadyUpdates) {
    state_.loss_scale *= 2;
    state_.steady = 0;
  }
  clock_.lap(&StepSeconds::update);
  clock_.read(seconds);
  return result;
}

std::vector<at::Tensor> kept_rows(const std::vector<double>& rates, const GroupedRows& rows, std::uint64_t seed,
                                  std::uint32_t stream) {
  std::vector<at::Tensor> kept;
  if (rows.crops == 0 || std::ranges::all_of(rates, [](double rate) { return rate <= 0; })) return kept;
  const std::int64_t of_group = rows.crops * rows.group;
  for (std::uint32_t branch = 0; branch < 2 * rates.size(); ++branch) {
    if (rates[branch / 2] <= 0) {
      kept.emplace_back();
      continue;
    }
    const auto keep = static_cast<std::int64_t>(static_cast<double>(of_group) * (1 - rates[branch / 2]));
    std::vector<std::int64_t> chosen;
    for (std::int64_t g = 0; g < rows.images / rows.group; ++g) {
      core::Random random(seed, core::Purpose::stochastic_depth, static_cast<std::uint64_t>(rows.first_group + g),
                          branch * 2 + stream);
      // Row r of a group is image r % group of crop r / group.
      for (const std::int64_t r : core::random_subset(random, of_group, std::max<std::int64_t>(1, keep)))
        chosen.push_back(r / rows.group * rows.images + g * rows.group + r % rows.group);
    }
    kept.push_back(at::tensor(chosen, at::kLong));
  }
  return kept;
}

}  // namespace allosaur::train
