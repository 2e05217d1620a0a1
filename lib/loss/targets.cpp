#include "loss/targets.hpp"

#include <limits>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "kernels/kernels.hpp"
#include "model/fused.hpp"

namespace allosaur::loss {

Targets sinkhorn_knopp(comm::Communicator& group, const at::Tensor& logits, double temperature, int iterations) {
  const at::NoGradGuard no_grad;
  const std::int64_t n = logits.size(0), prototypes = logits.size(1);
  const at::TensorOptions options = logits.options().dtype(at::kFloat);
  const kernels::Device device = model::kernel_device(logits);
  at::Tensor shift = at::zeros({prototypes}, options);                                   // log u, over prototypes
  at::Tensor sample = at::zeros({n}, options), mass = at::empty({prototypes}, options);  // log v, over samples
  for (int i = 0; i < iterations; ++i) {
    // log of each prototype's mass on this rank; then over ranks.
    kernels::run(device, kernels::ColumnLogSumExp{.rows = n,
                                                  .prototypes = prototypes,
                                                  .logits = logits.const_data_ptr(),
                                                  .type = model::kernel_type(logits),
                                                  .shift = sample.const_data_ptr<float>(),
                                                  .temperature = temperature,
                                                  .output = mass.mutable_data_ptr<float>()});
    at::Tensor largest = mass.clone();
    group.all_reduce(largest, comm::ReduceOp::max);
    // No rank holds a row: nothing to balance.
    largest = at::where(at::isinf(largest), at::zeros_like(largest), largest);
    at::Tensor total = (mass - largest).exp();
    group.all_reduce(total, comm::ReduceOp::sum);
    shift = -(largest + total.log());
    if (i + 1 == iterations) break;
    kernels::run(device, kernels::RowLogSumExp{.rows = n,
                                               .prototypes = prototypes,
                                               .logits = logits.const_data_ptr(),
                                               .type = model::kernel_type(logits),
                                               .shift = shift.const_data_ptr<float>(),
                                               .temperature = temperature,
                                               .output = sample.mutable_data_ptr<float>()});
    sample.neg_();
  }
  return {logits, shift, temperature};
}

Targets centre(const at::Tensor& logits, const at::Tensor& center, double temperature) {
  return {logits, -center / temperature, temperature};
}

Center::Center(std::int64_t prototypes, const at::TensorOptions& options, double momentum)
    : center_(at::zeros({prototypes}, options)), momentum_(momentum) {}

const at::Tensor& Center::value() {
  if (pending_.defined()) {
    center_ = center_ * momentum_ + pending_ * (1 - momentum_);
    pending_.reset();
  }
  return center_;
}

void Center::update(comm::Communicator& group, const at::Tensor& sum, double count) {
  at::Tensor packed = at::cat({sum.detach().to(at::kFloat), at::full({1}, count, sum.options().dtype(at::kFloat))});
  group.all_reduce(packed, comm::ReduceOp::sum);
  const std::int64_t prototypes = packed.size(0) - 1;
  const at::Tensor total = packed.narrow(0, prototypes, 1);
  // No masked patch on any rank leaves the centre where it is.
  pending_ = at::where(total > 0, packed.narrow(0, 0, prototypes) / total, center_);
}

at::Tensor Center::state() const {
  return at::stack(
      {center_, pending_.defined() ? pending_ : at::full_like(center_, std::numeric_limits<double>::quiet_NaN())});
}

void Center::restore(const at::Tensor& state) {
  center_ = state.select(0, 0).to(center_.options()).clone();
  const at::Tensor pending = state.select(0, 1).to(center_.options()).clone();
  pending_ = at::isnan(pending).any().item<bool>() ? at::Tensor() : pending;
}

}  // namespace allosaur::loss
