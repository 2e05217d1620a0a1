// AdamW with EMA teacher: one fused pass over flat slices, against LibTorch's foreach operators over parameter tensors,
// and as a share of the bandwidth of a memory copy. The parameters are those of a published ViT-S with one head.
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include "bench/bench.hpp"
#include "kernels/kernels.hpp"
#include "model/head.hpp"
#include "model/vision_transformer.hpp"

int main() {
  using namespace allosaur;
  const at::NoGradGuard no_grad;
  model::VitConfig config = model::vit_preset("vit_small");
  config.patch_size = 16;
  model::VisionTransformer backbone(config);
  model::ProjectionHead head({.in_dim = 384});
  std::vector<at::Tensor> weights, teacher, gradient, exp_avg, exp_avg_sq;
  const auto add = [&](std::vector<model::Parameter> parameters) {
    for (const model::Parameter& parameter : parameters) {
      weights.push_back(at::randn(parameter.tensor->sizes()));
      teacher.push_back(weights.back().clone());
      gradient.push_back(at::randn(parameter.tensor->sizes()));
      exp_avg.push_back(at::zeros(parameter.tensor->sizes()));
      exp_avg_sq.push_back(at::zeros(parameter.tensor->sizes()));
    }
  };
  add(backbone.parameters());
  add(head.parameters());
  const auto flat = [](const std::vector<at::Tensor>& parts) {
    std::vector<at::Tensor> rows;
    for (const at::Tensor& part : parts) rows.push_back(part.flatten());
    return at::cat(rows);
  };
  const at::Tensor w = flat(weights), t = w.clone(), g = flat(gradient), m = at::zeros_like(w), v = at::zeros_like(w);

  constexpr double kLr = 1e-3, kDecay = 0.04, kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8, kMomentum = 0.996;
  constexpr double kCorrection1 = 0.1, kCorrection2 = 0.001;
  kernels::AdamWEma k{.n = w.numel(),
                      .gradient = g.const_data_ptr(),
                      .exp_avg = m.mutable_data_ptr<float>(),
                      .exp_avg_sq = v.mutable_data_ptr<float>(),
                      .weights = w.mutable_data_ptr<float>(),
                      .teacher = t.mutable_data_ptr<float>(),
                      .lr = kLr,
                      .weight_decay = kDecay,
                      .beta1 = kBeta1,
                      .beta2 = kBeta2,
                      .eps = kEps,
                      .correction1 = kCorrection1,
                      .correction2 = kCorrection2,
                      .teacher_momentum = kMomentum};
  const auto foreach = [&] {
    at::_foreach_mul_(weights, 1 - kLr * kDecay);
    at::_foreach_lerp_(exp_avg, gradient, 1 - kBeta1);
    at::_foreach_mul_(exp_avg_sq, kBeta2);
    at::_foreach_addcmul_(exp_avg_sq, gradient, gradient, 1 - kBeta2);
    std::vector<at::Tensor> denominator = at::_foreach_sqrt(exp_avg_sq);
    at::_foreach_div_(denominator, std::sqrt(kCorrection2));
    at::_foreach_add_(denominator, kEps);
    at::_foreach_addcdiv_(weights, exp_avg, denominator, -kLr / kCorrection1);
    at::_foreach_mul_(teacher, kMomentum);
    at::_foreach_add_(teacher, weights, 1 - kMomentum);
  };
  const bench::Comparison result = bench::compare(9, [&] { kernels::run({}, k); }, foreach);
  const at::Tensor to = at::empty_like(w);
  const double copy = bench::compare(9, [&] { to.copy_(g); }, [] {}).ours;
  const double elements = static_cast<double>(k.n);
  const double rate = 36 * elements / result.ours, copy_rate = 8 * elements / copy;  // 5 reads and 4 writes; 1 and 1
  fmt::print("{:.1f} M parameters, {} threads: fused {:.1f} ms, foreach {:.1f} ms, ratio {:.2f}\n", elements / 1e6,
             at::get_num_threads(), result.ours * 1e3, result.theirs * 1e3, result.ratio);
  fmt::print("fused moves {:.1f} GB/s, {:.0f} % of a copy's {:.1f} GB/s\n", rate / 1e9, 100 * rate / copy_rate,
             copy_rate / 1e9);
}
