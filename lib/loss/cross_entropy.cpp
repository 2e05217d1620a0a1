#include "loss/cross_entropy.hpp"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/error.hpp"
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

/// Adds a leaf's gradient to what it has.
void accumulate(at::Tensor& leaf, const at::Tensor& gradient) {
  if (!leaf.requires_grad()) return;
  at::Tensor& sum = leaf.mutable_grad();
  if (!sum.defined())
    sum = gradient.to(leaf.scalar_type());
  else if (!sum.is_same(gradient))
    sum.add_(gradient);
}

/// The last layer in float32, and what its gradients add up in.
struct LastLayer {
  explicit LastLayer(const model::Prototypes& prototypes)
      : leaves(prototypes), direction(prototypes.direction.detach().to(at::kFloat)) {
    // A gain of zero would hide its gradient.
    constexpr double kSmallest = 1e-20;
    scale = leaves.gain.detach().flatten().to(at::kFloat) / at::linalg_vector_norm(direction, 2, {1});
    scale.masked_fill_(scale.abs() < kSmallest, kSmallest);
    const at::Tensor& grad = leaves.direction.grad();
    grad_direction = grad.defined() && grad.scalar_type() == at::kFloat ? grad : at::zeros_like(direction);
  }

  /// Turns the sums of scaled score gradients and embeddings into the gradients of the leaves.
  void finish() {
    at::Tensor grad_gain = at::empty_like(scale);
    kernels::run(model::kernel_device(direction),
                 kernels::WeightNormBackward{.rows = direction.size(0),
                                             .dim = direction.size(1),
                                             .direction = direction.const_data_ptr<float>(),
                                             .scale = scale.const_data_ptr<float>(),
                                             .grad_direction = grad_direction.mutable_data_ptr<float>(),
                                             .grad_gain = grad_gain.mutable_data_ptr<float>()});
    accumulate(leaves.direction, grad_direction);
    accumulate(leaves.gain, grad_gain.view_as(leaves.gain));
  }

  model::Prototypes leaves;
  at::Tensor direction;       // f32 [K, b]
  at::Tensor scale;           // f32 [K], gain / |direction|: score k is scale_k * (x . direction_k)
  at::Tensor grad_direction;  // f32 [K, b]
};

/// The gradients come out of the forward pass, where the scores are at hand.
struct Function : torch::autograd::Function<Function> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& student,
                            const at::Tensor& gain, const at::Tensor& direction,
                            const std::vector<Comparison>* comparisons, const CrossEntropyConfig& config,
                            std::vector<at::Tensor>* per_crop) {
    at::Tensor grad_student = at::empty_like(student, at::MemoryFormat::Contiguous);
    LastLayer layer({gain, direction});
    at::Tensor total = at::zeros({}, student.options());
    const model::Products products(config.fast);
    std::int64_t begin = 0;
    for (const Comparison& comparison : *comparisons) {
      const std::int64_t crops = comparison.pairs.size(0), n = comparison.row_weight.size(0);
      const auto part = [&](const at::Tensor& rows) {
        return rows.narrow(0, begin, crops * n).view({crops, n, rows.size(1)});
      };
      const at::Tensor losses = compare(comparison, part(student), layer, config, products, part(grad_student));
      total += losses.sum() * (comparison.weight * config.scale);
      per_crop->push_back(losses);
      begin += crops * n;
    }
    layer.finish();
    context->save_for_backward({grad_student});
    return total;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad_output) {
    if (grad_output[0].is_cpu() && grad_output[0].item<double>() != 1)
      throw core::UsageError("The total of prototype_cross_entropy() is scaled by its own `scale` only.");
    return {context->get_saved_variables()[0], {}, {}, {}, {}, {}};
  }

 private:
  /// The losses [C] of student [C, n, b]; writes its gradients and adds those of the last layer, with weight and scale.
  static at::Tensor compare(const Comparison& comparison, const at::Tensor& student, LastLayer& layer,
                            const CrossEntropyConfig& config, const model::Products& products,
                            const at::Tensor& grad_student) {
    const at::Tensor& pairs = comparison.pairs;
    const std::int64_t crops = student.size(0), n = student.size(1), count = layer.scale.size(0);
    const double factor = comparison.weight * config.scale;
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
      products.write(scores, x, layer.direction.t());
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
                                               .scale = layer.scale.const_data_ptr<float>(),
                                               .target = target.const_data_ptr<float>(),
                                               .row_weight = weight.const_data_ptr<float>(),
                                               .mass = mass,
                                               .temperature = config.student_temperature,
                                               .loss = row_losses.mutable_data_ptr<float>()});
      }
      grad_student.narrow(1, first, rows)
          .copy_((products.of(scores, layer.direction) * factor).view({crops, rows, -1}));
      products.add(layer.grad_direction, scores.t(), x, factor);
    });
    return loss.sum(1);
  }
};

}  // namespace

CrossEntropy prototype_cross_entropy(const at::Tensor& student, const model::Prototypes& prototypes,
                                     const std::vector<Comparison>& comparisons, const CrossEntropyConfig& config) {
  CrossEntropy result;
  result.total = Function::apply(student.to(at::kFloat), prototypes.gain, prototypes.direction, &comparisons, config,
                                 &result.per_crop);
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
