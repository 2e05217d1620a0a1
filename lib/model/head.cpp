#include "model/head.hpp"

#include <cmath>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "model/fused.hpp"
#include "model/linear.hpp"

namespace allosaur::model {

ProjectionHead::ProjectionHead(const HeadConfig& config) : config_(config) {
  for (int i = 0; i < config.layers; ++i) {
    const int in = i == 0 ? config.in_dim : config.hidden_dim;
    const int out = i == config.layers - 1 ? config.bottleneck_dim : config.hidden_dim;
    weights_.push_back(at::zeros({out, in}));
    biases_.push_back(at::zeros({out}));
  }
  prototypes_ = {at::zeros({config.prototypes, 1}), at::zeros({config.prototypes, config.bottleneck_dim})};
}

std::vector<Parameter> ProjectionHead::parameters() {
  std::vector<Parameter> list;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    // Linear layers sit at the even places of the official module list, GELUs between them; a single layer is no list.
    const std::string name = weights_.size() == 1 ? "mlp" : fmt::format("mlp.{}", 2 * i);
    list.push_back({name + ".weight", "head", &weights_[i], Init::truncated_normal, 0});
    list.push_back({name + ".bias", "head", &biases_[i], Init::zeros, 0});
  }
  list.push_back({"last_layer.weight_g", "head", &prototypes_.gain, Init::ones, 0});
  list.push_back({"last_layer.weight_v", "head", &prototypes_.direction, Init::fan_in_uniform,
                  1.0 / std::sqrt(static_cast<double>(config_.bottleneck_dim))});
  return list;
}

at::Tensor ProjectionHead::embed(const at::Tensor& x) const {
  at::Tensor y = x;
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    y = linear(y, weights_[i], biases_[i], fast_products_);
    if (i + 1 < weights_.size()) y = fused_gelu(y);
  }
  // The published epsilon depends on the type: 1e-12 would vanish in float16.
  const double eps = y.scalar_type() == at::kHalf ? 1e-6 : 1e-12;
  return y / at::norm(y, 2, -1, true).clamp_min(eps);
}

at::Tensor Prototypes::effective(at::ScalarType type) const {
  at::Tensor output = at::empty(direction.sizes(), direction.options().dtype(type));
  kernels::run(kernel_device(direction), kernels::WeightNorm{.rows = direction.size(0),
                                                             .dim = direction.size(1),
                                                             .type = kernel_type(direction),
                                                             .output_type = kernel_type(output),
                                                             .gain = gain.const_data_ptr(),
                                                             .direction = direction.const_data_ptr(),
                                                             .output = output.mutable_data_ptr()});
  return output;
}

}  // namespace allosaur::model
