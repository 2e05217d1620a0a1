#include "loss/cross_entropy.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "loss/rows.hpp"

namespace allosaur::loss {

namespace {

at::Tensor target_rows(const Targets& targets, std::int64_t first, std::int64_t rows) {
  return at::softmax(targets.logits.narrow(0, first, rows) / targets.temperature + targets.shift, 1);
}

/// The gradients come out of the forward pass, where the scores are at hand, and wait for the backward one.
struct Function : torch::autograd::Function<Function> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& student,
                            const at::Tensor& prototypes, const Targets& teacher, const at::Tensor& pairs,
                            const at::Tensor& row_weight, double temperature, at::Tensor* per_crop_out) {
    const std::int64_t crops = student.size(0), n = student.size(1), teacher_crops = pairs.size(1);
    const auto pair = pairs.accessor<float, 2>();
    at::Tensor grad_student = at::empty_like(student);
    at::Tensor grad_prototypes = at::zeros_like(prototypes);
    at::Tensor per_crop = at::zeros({crops}, student.options());
    for_row_chunks(n, prototypes.size(0), [&](std::int64_t first, std::int64_t rows) {
      const at::Tensor weight = row_weight.narrow(0, first, rows).unsqueeze(1);
      std::vector<at::Tensor> targets;
      for (std::int64_t g = 0; g < teacher_crops; ++g) targets.push_back(target_rows(teacher, g * n + first, rows));
      for (std::int64_t c = 0; c < crops; ++c) {
        at::Tensor target = at::zeros_like(targets.front());
        float mass = 0;  // of the targets this crop is compared with
        for (std::int64_t g = 0; g < teacher_crops; ++g)
          if (pair[c][g] != 0) {
            target.add_(targets[static_cast<std::size_t>(g)], pair[c][g]);
            mass += pair[c][g];
          }
        const at::Tensor x = student[c].narrow(0, first, rows);
        const at::Tensor log_probabilities = at::log_softmax(at::mm(x, prototypes.t()).div_(temperature), 1);  // [rows, K]
        per_crop[c] -= (log_probabilities * target).sum(1).dot(weight.squeeze(1));
        // d CE / d score = (mass * softmax - target) / temperature
        const at::Tensor grad = log_probabilities.exp_().mul_(mass).sub_(target).mul_(weight / temperature);
        at::Tensor slice = grad_student[c].narrow(0, first, rows);
        at::mm_out(slice, grad, prototypes);
        grad_prototypes.addmm_(grad.t(), x);
      }
    });
    context->save_for_backward({grad_student, grad_prototypes});
    *per_crop_out = per_crop;
    return per_crop.sum();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad_output) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * grad_output[0], saved[1] * grad_output[0], {}, {}, {}, {}, {}};
  }
};

}  // namespace

CrossEntropy prototype_cross_entropy(const at::Tensor& student, const at::Tensor& prototypes, const Targets& teacher,
                                     const at::Tensor& pairs, const at::Tensor& row_weight, double student_temperature) {
  CrossEntropy result;
  result.total = Function::apply(student, prototypes, teacher, pairs, row_weight, student_temperature, &result.per_crop);
  return result;
}

TargetStatistics target_statistics(const Targets& targets) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = targets.logits.size(0), prototypes = targets.logits.size(1);
  at::Tensor mean = at::zeros({prototypes}, targets.logits.options().dtype(at::kDouble));
  double entropy = 0;
  const auto entropy_of = [](const at::Tensor& p) { return -at::xlogy(p, p).sum().item<double>(); };
  for_row_chunks(n, prototypes, [&](std::int64_t first, std::int64_t rows) {
    const at::Tensor p = target_rows(targets, first, rows);
    entropy += entropy_of(p);
    mean += p.sum(0);
  });
  return {entropy / static_cast<double>(n), entropy_of(mean / static_cast<double>(n))};
}

}  // namespace allosaur::loss
