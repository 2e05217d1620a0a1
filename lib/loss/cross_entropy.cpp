#include "loss/cross_entropy.hpp"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "kernels/kernels.hpp"
#include "loss/rows.hpp"
#include "model/fused.hpp"
#include "model/linear.hpp"

namespace allosaur::loss {

namespace {

/// output [rows, K] (+)= weight * the targets of rows [first, first + rows).
void target_rows(const Targets& targets, std::int64_t first, double weight, bool accumulate, at::Tensor& output) {
  const at::Tensor logits = targets.logits.narrow(0, first, output.size(0));
  kernels::run(model::kernel_device(logits), kernels::TargetRows{.rows = output.size(0),
                                                                 .prototypes = output.size(1),
                                                                 .logits = logits.const_data_ptr(),
                                                                 .type = model::kernel_type(logits),
                                                                 .shift = targets.shift.const_data_ptr<float>(),
                                                                 .temperature = targets.temperature,
                                                                 .weight = weight,
                                                                 .accumulate = accumulate,
                                                                 .output = output.mutable_data_ptr<float>()});
}

/// The gradients come out of the forward pass, where the scores are at hand, and wait for the backward one.
struct Function : torch::autograd::Function<Function> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& student,
                            const at::Tensor& prototypes, const std::vector<Comparison>* comparisons,
                            double temperature, bool fast, std::vector<at::Tensor>* per_crop) {
    at::Tensor grad_student = at::empty_like(student, at::MemoryFormat::Contiguous);
    at::Tensor grad_prototypes = at::zeros_like(prototypes, at::MemoryFormat::Contiguous);
    at::Tensor total = at::zeros({}, student.options());
    const model::Products products(fast);
    std::int64_t begin = 0;
    for (const Comparison& comparison : *comparisons) {
      const std::int64_t crops = comparison.pairs.size(0), n = comparison.row_weight.size(0);
      const auto part = [&](const at::Tensor& rows) {
        return rows.narrow(0, begin, crops * n).view({crops, n, rows.size(1)});
      };
      const at::Tensor losses =
          compare(comparison, part(student), prototypes, temperature, part(grad_student), grad_prototypes);
      total += losses.sum() * comparison.weight;
      per_crop->push_back(losses);
      begin += crops * n;
    }
    context->save_for_backward({grad_student, grad_prototypes});
    return total;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad_output) {
    const auto saved = context->get_saved_variables();
    // In place: one of them is as large as the prototypes. A second backward pass through the same loss is an error.
    return {saved[0].mul_(grad_output[0]), saved[1].mul_(grad_output[0]), {}, {}, {}, {}};
  }

 private:
  /// The losses [C] of student [C, n, b]; writes its gradients and adds those of the prototypes, with the weight.
  static at::Tensor compare(const Comparison& comparison, const at::Tensor& student, const at::Tensor& prototypes,
                            double temperature, const at::Tensor& grad_student, at::Tensor& grad_prototypes) {
    const at::Tensor& pairs = comparison.pairs;
    const std::int64_t crops = student.size(0), n = student.size(1), count = prototypes.size(0);
    const auto pair = pairs.accessor<float, 2>();
    at::Tensor loss = at::empty({crops, n}, student.options());
    at::Tensor all_scores, all_targets;
    for_row_chunks(n, crops * count, student.is_cuda(), [&](std::int64_t first, std::int64_t rows) {
      if (!all_scores.defined()) {
        all_scores = at::empty({crops * rows, count}, student.options());
        all_targets = at::empty({rows, count}, student.options());
      }
      // The crops of these rows, one below the other, so that each pass over the prototypes serves all of them.
      const at::Tensor x = student.narrow(1, first, rows).reshape({crops * rows, -1});
      at::Tensor scores = all_scores.narrow(0, 0, crops * rows), target = all_targets.narrow(0, 0, rows);
      at::mm_out(scores, x, prototypes.t());
      const at::Tensor weight = comparison.row_weight.narrow(0, first, rows).contiguous();
      double mass = 0;  // of the targets a crop is compared with
      for (std::int64_t c = 0; c < crops; ++c) {
        if (c == 0 || !std::equal(pair[c].data(), pair[c].data() + pairs.size(1), pair[c - 1].data())) {
          mass = 0;
          bool any = false;
          for (std::int64_t g = 0; g < pairs.size(1); ++g)
            if (pair[c][g] != 0) {
              target_rows(comparison.teacher, g * n + first, pair[c][g], any, target);
              any = true;
              mass += pair[c][g];
            }
          if (!any) target.zero_();
        }
        const at::Tensor row_losses = loss[c].narrow(0, first, rows), of_crop = scores.narrow(0, c * rows, rows);
        kernels::run(model::kernel_device(scores),
                     kernels::CrossEntropyRows{.rows = rows,
                                               .prototypes = count,
                                               .scores = of_crop.mutable_data_ptr<float>(),
                                               .target = target.const_data_ptr<float>(),
                                               .row_weight = weight.const_data_ptr<float>(),
                                               .mass = mass,
                                               .temperature = temperature,
                                               .loss = row_losses.mutable_data_ptr<float>()});
      }
      grad_student.narrow(1, first, rows)
          .copy_((at::mm(scores, prototypes) * comparison.weight).view({crops, rows, -1}));
      grad_prototypes.addmm_(scores.t(), x, 1, comparison.weight);
    });
    return loss.sum(1);
  }
};

}  // namespace

CrossEntropy prototype_cross_entropy(const at::Tensor& student, const at::Tensor& prototypes,
                                     const std::vector<Comparison>& comparisons, double student_temperature,
                                     bool fast) {
  CrossEntropy result;
  result.total =
      Function::apply(student.to(at::kFloat), prototypes, &comparisons, student_temperature, fast, &result.per_crop);
  return result;
}

TargetStatistics target_statistics(const Targets& targets) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = targets.logits.size(0), prototypes = targets.logits.size(1);
  at::Tensor mean = at::zeros({prototypes}, targets.logits.options().dtype(at::kDouble));
  double entropy = 0;
  const auto entropy_of = [](const at::Tensor& p) { return -at::xlogy(p, p).sum().item<double>(); };
  for_row_chunks(n, prototypes, targets.logits.is_cuda(), [&](std::int64_t first, std::int64_t rows) {
    at::Tensor p = at::empty({rows, prototypes}, targets.shift.options());
    target_rows(targets, first, 1, false, p);
    entropy += entropy_of(p);
    mean += p.sum(0);
  });
  return {entropy / static_cast<double>(n), entropy_of(mean / static_cast<double>(n))};
}

}  // namespace allosaur::loss
