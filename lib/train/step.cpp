#include "train/step.hpp"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "core/random.hpp"
#include "loss/koleo.hpp"

namespace allosaur::train {

namespace {

/// exp of the entropy of the spectrum: how many directions the features use (Roy & Vetterli, 2007).
double effective_rank(const at::Tensor& features) {
  const at::Tensor centred = (features - features.mean(0)).to(at::kDouble);
  const at::Tensor spectrum = at::linalg_eigvalsh(centred.size(0) < centred.size(1) ? at::mm(centred, centred.t())
                                                                                     : at::mm(centred.t(), centred))
                                  .clamp_min(0);
  const at::Tensor p = spectrum / spectrum.sum().clamp_min(1e-300);
  return std::exp(-at::xlogy(p, p).sum().item<double>());
}

/// Each masked patch weighs one over the masked patches of its image, and all crops count, masked or not (facts 2.3).
at::Tensor masked_weights(const at::Tensor& masks) {
  const at::Tensor per_crop = masks.sum(1, true).clamp_min(1).to(at::kFloat).reciprocal();
  return per_crop.expand_as(masks).masked_select(masks) / static_cast<double>(masks.size(0));
}

}  // namespace

struct Trainer::TeacherTargets {
  loss::Targets dino;           // rows [2n], crop-major
  loss::Targets ibot;           // rows [masked patches]
  at::Tensor cls;               // f32 [2n, D]
};

Trainer::Trainer(comm::Communicator& group, Network& student, Network& teacher, Units& units,
                 const ObjectiveConfig& objective, const OptimizerConfig& optimizer)
    : group_(group),
      student_(student),
      teacher_(teacher),
      units_(units),
      objective_(objective),
      optimizer_(optimizer),
      centers_{loss::Center(student.dino_head().config().prototypes, student.dino_head().prototypes().options()),
               loss::Center(student.ibot_head().config().prototypes, student.ibot_head().prototypes().options())} {}

Trainer::TeacherTargets Trainer::teacher_targets(const StepInput& input, const at::Tensor& masked) {
  const at::NoGradGuard no_grad;
  const double temperature = input.schedule.teacher_temperature;
  const model::VitOutput output = teacher_.backbone().forward(input.global_crops);
  const auto logits = [](const model::ProjectionHead& head, const at::Tensor& tokens) {
    return at::mm(head.embed(tokens), head.prototypes().t());
  };
  const at::Tensor dino_logits = logits(teacher_.dino_head(), output.cls);
  const at::Tensor ibot_logits = logits(teacher_.ibot_head(), output.patches.flatten(0, 1).index_select(0, masked));
  if (objective_.centering == Centering::sinkhorn_knopp)
    return {loss::sinkhorn_knopp(group_, dino_logits, temperature), loss::sinkhorn_knopp(group_, ibot_logits, temperature),
            output.cls};

  TeacherTargets targets{loss::centre(dino_logits, centers_.dino.value(), temperature),
                         loss::centre(ibot_logits, centers_.ibot.value(), temperature), output.cls};
  centers_.dino.update(group_, dino_logits.sum(0), static_cast<double>(dino_logits.size(0)));
  // The iBOT centre is the mean over groups of each group's mean, whatever the numbers of masked patches (facts 2.4).
  const std::int64_t images = input.masks.size(0) / 2, groups = images / input.group;
  const at::Tensor group_of_crop = at::arange(images, masked.options()).floor_divide(input.group).repeat({2});
  const at::Tensor group_of_row = group_of_crop.index_select(0, masked.floor_divide(input.masks.size(1)));
  const at::Tensor counts = at::bincount(group_of_row, {}, groups).to(at::kFloat);
  const at::Tensor means = at::zeros({groups, ibot_logits.size(1)}, ibot_logits.options())
                               .index_add_(0, group_of_row, ibot_logits)
                               .div_(counts.clamp_min(1).unsqueeze(1));
  centers_.ibot.update(group_, means.sum(0), static_cast<double>((counts > 0).sum().item<std::int64_t>()));
  return targets;
}

StepResult Trainer::run(const StepInput& input) {
  units_.wait_for_weights();
  const std::int64_t images = input.global_crops.size(0) / 2;
  const std::int64_t locals = input.local_crops.defined() ? input.local_crops.size(0) / images : 0;
  const at::Tensor masked = input.masks.flatten().nonzero().flatten();  // i64 [m] into [2n * N]
  const TeacherTargets teacher = teacher_targets(input, masked);

  std::vector<model::VitInput> crops{{input.global_crops, input.masks, input.kept_global}};
  if (locals > 0) crops.push_back({input.local_crops, {}, input.kept_local});
  const std::vector<model::VitOutput> student = student_.backbone().forward_packed(crops);
  const at::Tensor& global_cls = student[0].cls;  // [2n, D]
  const at::Tensor cls = locals > 0 ? at::cat({student[1].cls, global_cls}) : global_cls;
  const at::Tensor patches = student[0].patches.flatten(0, 1).index_select(0, masked);

  // Through the heads: one pass where class tokens and patches share one.
  at::Tensor cls_embedding, patch_embedding;
  if (student_.separate_ibot_head()) {
    cls_embedding = student_.dino_head().embed(cls);
    patch_embedding = student_.ibot_head().embed(patches);
  } else {
    const auto parts = student_.dino_head().embed(at::cat({cls, patches})).split_with_sizes({cls.size(0), patches.size(0)});
    cls_embedding = parts[0];
    patch_embedding = parts[1];
  }
  const at::Tensor dino_prototypes = student_.dino_head().prototypes();
  const at::Tensor ibot_prototypes = student_.separate_ibot_head() ? student_.ibot_head().prototypes() : dino_prototypes;

  // DINO: every local crop against both teacher crops, every global crop against the other one; all pairs weigh the same.
  at::Tensor pairs = at::zeros({locals + 2, 2});
  pairs.narrow(0, 0, locals).fill_(1);
  pairs[locals][1] = 1;
  pairs[locals + 1][0] = 1;
  const auto terms = static_cast<double>(2 + 2 * locals);
  const at::Tensor image_weight = at::full({images}, 1.0 / (terms * static_cast<double>(images)), cls_embedding.options());
  const loss::CrossEntropy dino = loss::prototype_cross_entropy(
      cls_embedding.view({locals + 2, images, -1}), dino_prototypes, teacher.dino, pairs, image_weight, objective_.student_temperature);
  const loss::CrossEntropy ibot =
      loss::prototype_cross_entropy(patch_embedding.unsqueeze(0), ibot_prototypes, teacher.ibot, at::ones({1, 1}),
                                    masked_weights(input.masks), objective_.student_temperature);
  const auto halves = global_cls.chunk(2);
  const at::Tensor koleo = loss::koleo(halves[0], input.group) + loss::koleo(halves[1], input.group);
  const at::Tensor total =
      dino.total * objective_.dino_weight + ibot.total * objective_.ibot_weight + koleo * objective_.koleo_weight;

  units_.begin_backward();
  // The mean over ranks divides here, once, before the sum.
  (total / static_cast<double>(group_.size())).backward();
  const std::array<double, kSubmodules> squares = units_.finish_backward();

  // One reduction carries the losses, the squared norms and the wish to stop.
  const double share = 1.0 / group_.size();
  std::array<double, 6 + kSubmodules> sums{dino.per_crop.narrow(0, 0, locals).sum().item<double>() * share,
                                           dino.per_crop.narrow(0, locals, 2).sum().item<double>() * share,
                                           ibot.total.item<double>() * share,
                                           koleo.item<double>() * share,
                                           total.item<double>() * share,
                                           input.stop_requested ? 1.0 : 0.0};
  std::ranges::copy(squares, sums.begin() + 6);
  group_.all_reduce(std::span<double>(sums), comm::ReduceOp::sum);

  StepResult result;
  result.dino_local = sums[0];
  result.dino_global = sums[1];
  result.ibot = sums[2];
  result.koleo = sums[3];
  result.total = sums[4];
  result.stop_requested = sums[5] > 0;
  std::array<double, kSubmodules> clip{};
  bool finite = std::isfinite(result.total);
  for (std::size_t i = 0; i < kSubmodules; ++i) {
    result.gradient_norm[i] = std::sqrt(sums[6 + i]);
    finite = finite && std::isfinite(result.gradient_norm[i]);
    clip[i] = optimizer_.clip_grad > 0 ? std::min(1.0, optimizer_.clip_grad / (result.gradient_norm[i] + 1e-6)) : 1.0;
  }
  if (!finite)
    throw core::NumericalError(fmt::format(
        "Iteration {} is not finite: DINO local {:.4g}, DINO global {:.4g}, iBOT {:.4g}, KoLeo {:.4g}, gradient norms {:.4g}, "
        "{:.4g}, {:.4g}. Lower optim.base_lr, or look for broken images in this batch; the last checkpoint is intact.",
        input.iteration, result.dino_local, result.dino_global, result.ibot, result.koleo, result.gradient_norm[0],
        result.gradient_norm[1], result.gradient_norm[2]));
  if (input.statistics) {
    result.targets = loss::target_statistics(teacher.dino);
    result.feature_rank = effective_rank(teacher.cls);
  }
  units_.update(input.schedule, clip, input.update);
  return result;
}

std::vector<at::Tensor> kept_rows(const std::vector<double>& rates, const GroupedRows& rows, std::uint64_t seed,
                                  std::uint32_t stream) {
  std::vector<at::Tensor> kept;
  if (rows.crops == 0 || std::ranges::all_of(rates, [](double rate) { return rate <= 0; })) return kept;
  const std::int64_t of_group = rows.crops * rows.group;
  for (std::uint32_t branch = 0; branch < 2 * rates.size(); ++branch) {
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
