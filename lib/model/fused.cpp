#include "model/fused.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>
#ifdef ALLOSAUR_HAVE_CUDA
#include <c10/cuda/CUDAStream.h>
#endif

#include "core/error.hpp"
#include "model/linear.hpp"

namespace allosaur::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const std::int64_t* indices(const at::Tensor& index) {
  return index.defined() ? index.const_data_ptr<std::int64_t>() : nullptr;
}

const float* floats(const at::Tensor& values) {
  return values.defined() ? values.const_data_ptr<float>() : nullptr;
}

at::Tensor as_floats(const at::Tensor& parameter) {
  return parameter.defined() ? parameter.to(at::kFloat) : parameter;
}

/// Autograd counts an undefined tensor as an input, but not an absent one.
std::optional<at::Tensor> if_defined(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

struct Normalised {
  at::Tensor output, mean, rstd;
};

/// layer_norm(x[index]); copies x[index] to `gathered` where that is defined.
Normalised normalise(const at::Tensor& x, const at::Tensor& index, const at::Tensor& weight, const at::Tensor& bias,
                     const at::Tensor& gathered) {
  const std::int64_t rows = index.defined() ? index.size(0) : x.size(0), dim = x.size(1);
  const auto statistics = x.options().dtype(at::kFloat);
  const at::Tensor scale = as_floats(weight), offset = as_floats(bias);
  Normalised result{at::empty({rows, dim}, x.options()), at::empty({rows}, statistics), at::empty({rows}, statistics)};
  kernels::run(kernel_device(x),
               kernels::LayerNorm{.rows = rows,
                                  .dim = dim,
                                  .type = kernel_type(x),
                                  .x = x.const_data_ptr(),
                                  .index = indices(index),
                                  .weight = floats(scale),
                                  .bias = floats(offset),
                                  .eps = kNormEps,
                                  .output = result.output.mutable_data_ptr(),
                                  .gathered = gathered.defined() ? gathered.mutable_data_ptr() : nullptr,
                                  .mean = result.mean.mutable_data_ptr<float>(),
                                  .rstd = result.rstd.mutable_data_ptr<float>()});
  return result;
}

struct NormLinear : torch::autograd::Function<NormLinear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const Rows& rows,
                            const at::Tensor& norm_weight, const at::Tensor& norm_bias, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, bool fast, bool keep) {
    const at::Tensor& index = rows.index;
    at::Tensor gathered;
    if (keep) gathered = at::empty({index.defined() ? index.size(0) : x.size(0), x.size(1)}, x.options());
    const Normalised normalised = normalise(x, index, norm_weight, norm_bias, gathered);
    context->save_for_backward({gathered, index, norm_weight, norm_bias, weight});
    context->saved_data["rows"] = x.size(0);
    context->saved_data["bias"] = bias.has_value();
    context->saved_data["fast"] = fast;
    context->saved_data["vary"] = rows.vary;
    return Products(fast, rows.vary).linear(normalised.output, weight, bias.value_or(at::Tensor()));
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_output) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gathered = saved[0], &index = saved[1], &norm_weight = saved[2], &weight = saved[4];
    const at::Tensor grad = grad_output[0].contiguous();  // [n, out]
    const Normalised normalised = normalise(gathered, {}, norm_weight, saved[3], {});
    at::Tensor grad_weight, grad_normalised;
    {
      const Products products(context->saved_data["fast"].toBool(), context->saved_data["vary"].toBool());
      grad_weight = products.of(grad.t(), normalised.output);
      grad_normalised = products.of(grad, weight);
    }
    const std::int64_t dim = gathered.size(1);
    const at::Tensor grad_x = index.defined()
                                  ? at::zeros({context->saved_data["rows"].toInt(), dim}, gathered.options())
                                  : at::empty_like(gathered);
    const at::Tensor scale = as_floats(norm_weight);
    const at::Tensor grad_norm_weight = at::empty_like(scale), grad_norm_bias = at::empty_like(scale);
    const at::Tensor workspace = at::empty({scale.is_cuda() ? kernels::kLayerNormSlices : 0, 2, dim}, scale.options());
    kernels::run(kernel_device(gathered),
                 kernels::LayerNormBackward{.rows = gathered.size(0),
                                            .dim = dim,
                                            .type = kernel_type(gathered),
                                            .x = gathered.const_data_ptr(),
                                            .mean = floats(normalised.mean),
                                            .rstd = floats(normalised.rstd),
                                            .weight = floats(scale),
                                            .grad_output = grad_normalised.const_data_ptr(),
                                            .index = indices(index),
                                            .grad_x = grad_x.mutable_data_ptr(),
                                            .grad_weight = grad_norm_weight.mutable_data_ptr<float>(),
                                            .grad_bias = grad_norm_bias.mutable_data_ptr<float>(),
                                            .workspace = workspace.mutable_data_ptr<float>()});
    const at::Tensor grad_bias = context->saved_data["bias"].toBool() ? grad.sum(0) : at::Tensor();
    return {grad_x, {}, grad_norm_weight, grad_norm_bias, grad_weight, grad_bias, {}, {}};
  }
};

/// activation(input + bias); bias f32 or undefined.
at::Tensor activated(Activation activation, const at::Tensor& input, const at::Tensor& bias) {
  if (activation == Activation::none) return input;
  const kernels::Device device = kernel_device(input);
  if (activation == Activation::gelu) {
    at::Tensor output = at::empty_like(input);
    kernels::run(device, kernels::Gelu{.rows = input.numel() / input.size(-1),
                                       .dim = input.size(-1),
                                       .type = kernel_type(input),
                                       .x = input.const_data_ptr(),
                                       .bias = floats(bias),
                                       .output = output.mutable_data_ptr()});
    return output;
  }
  at::Tensor output = at::empty({input.size(0), input.size(1) / 2}, input.options());
  kernels::run(device, kernels::SwiGlu{.rows = output.size(0),
                                       .hidden = output.size(1),
                                       .type = kernel_type(input),
                                       .x = input.const_data_ptr(),
                                       .bias = floats(bias),
                                       .output = output.mutable_data_ptr()});
  return output;
}

/// The gradient of `input`, from that of the activation's output, which it may overwrite.
at::Tensor activated_backward(Activation activation, const at::Tensor& input, const at::Tensor& bias, at::Tensor grad) {
  if (activation == Activation::none) return grad;
  const kernels::Device device = kernel_device(input);
  if (activation == Activation::gelu) {
    kernels::run(device, kernels::GeluBackward{.rows = input.numel() / input.size(-1),
                                               .dim = input.size(-1),
                                               .type = kernel_type(input),
                                               .x = input.const_data_ptr(),
                                               .bias = floats(bias),
                                               .grad_output = grad.const_data_ptr(),
                                               .grad_x = grad.mutable_data_ptr()});
    return grad;
  }
  at::Tensor grad_input = at::empty_like(input);
  kernels::run(device, kernels::SwiGluBackward{.rows = grad.size(0),
                                               .hidden = grad.size(1),
                                               .type = kernel_type(input),
                                               .x = input.const_data_ptr(),
                                               .bias = floats(bias),
                                               .grad_output = grad.const_data_ptr(),
                                               .grad_x = grad_input.mutable_data_ptr()});
  return grad_input;
}

struct AddLinear : torch::autograd::Function<AddLinear> {
  static at::Tensor forward(AutogradContext* context, at::Tensor x, const at::Tensor& input,
                            const std::optional<at::Tensor>& input_bias, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& layer_scale,
                            const Rows& rows, Activation activation, bool fast) {
    const at::Tensor gamma = as_floats(layer_scale.value_or(at::Tensor()));
    const at::Tensor offset = as_floats(bias.value_or(at::Tensor()));
    const at::Tensor input_offset = as_floats(input_bias.value_or(at::Tensor()));
    context->mark_dirty({x});
    context->save_for_backward({input, weight, offset, gamma, rows.index, rows.scale, input_offset});
    context->saved_data["activation"] = static_cast<std::int64_t>(activation);
    context->saved_data["fast"] = fast;
    context->saved_data["vary"] = rows.vary;
    const at::Tensor branch = Products(fast, rows.vary).linear(activated(activation, input, input_offset), weight);
    kernels::run(kernel_device(x), kernels::ResidualAdd{.rows = branch.size(0),
                                                        .dim = branch.size(1),
                                                        .type = kernel_type(x),
                                                        .x = x.mutable_data_ptr(),
                                                        .index = indices(rows.index),
                                                        .scale = floats(rows.scale),
                                                        .gamma = floats(gamma),
                                                        .bias = floats(offset),
                                                        .branch = branch.const_data_ptr()});
    return x;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_output) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &gamma = saved[3], &index = saved[4],
                     &scale = saved[5], &input_bias = saved[6];
    const auto activation = static_cast<Activation>(context->saved_data["activation"].toInt());
    const at::Tensor grad_x = grad_output[0].contiguous();
    // A weight times a small gamma vanishes in float16: there its largest element goes to the gradient instead.
    at::Tensor unit, relative = gamma, row_scale = scale;
    if (gamma.defined() && input.scalar_type() != at::kFloat) {
      unit = gamma.abs().max().clamp_min(1e-12);
      relative = gamma / unit;
      row_scale = scale.defined() ? scale * unit : unit.expand({input.size(0)}).contiguous();
    }
    at::Tensor grad = grad_x;  // [n, D], of linear(...), but for gamma
    if (index.defined() || row_scale.defined()) {
      grad = at::empty({input.size(0), grad_x.size(1)}, grad_x.options());
      kernels::run(kernel_device(grad), kernels::ResidualGather{.rows = grad.size(0),
                                                                .dim = grad.size(1),
                                                                .type = kernel_type(grad),
                                                                .x = grad_x.const_data_ptr(),
                                                                .index = indices(index),
                                                                .scale = floats(row_scale),
                                                                .output = grad.mutable_data_ptr()});
    }
    const Products products(context->saved_data["fast"].toBool(), context->saved_data["vary"].toBool());
    at::Tensor grad_weight = products.of(grad.t(), activated(activation, input, input_bias)), grad_bias, grad_gamma;
    if (bias.defined()) grad_bias = grad.sum(0);
    at::Tensor scaled_weight = weight;
    if (gamma.defined()) {
      // gamma_j multiplies row j of weight and bias, so its gradient comes from theirs and no output need be kept.
      grad_gamma = (as_floats(grad_weight) * weight).sum(1);
      if (bias.defined()) grad_gamma.addcmul_(as_floats(grad_bias), bias);
      if (unit.defined()) grad_gamma.div_(unit);
      const at::Tensor column = relative.unsqueeze(1).to(weight.scalar_type());
      scaled_weight = weight * column;
      grad_weight.mul_(column);
      if (bias.defined()) grad_bias.mul_(relative);
    }
    const at::Tensor grad_input = activated_backward(activation, input, input_bias, products.of(grad, scaled_weight));
    const at::Tensor grad_input_bias = input_bias.defined() ? grad_input.sum(0) : at::Tensor();
    return {grad_x, grad_input, grad_input_bias, grad_weight, grad_bias, grad_gamma, {}, {}, {}};
  }
};

struct GeluFunction : torch::autograd::Function<GeluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x) {
    context->save_for_backward({x});
    return activated(Activation::gelu, x, {});
  }
  static variable_list backward(AutogradContext* context, const variable_list& grad_output) {
    return {activated_backward(Activation::gelu, context->get_saved_variables()[0], {},
                               grad_output[0].clone(at::MemoryFormat::Contiguous))};
  }
};

}  // namespace

kernels::Device kernel_device(const at::Tensor& tensor) {
#ifdef ALLOSAUR_HAVE_CUDA
  if (tensor.is_cuda()) return {true, c10::cuda::getCurrentCUDAStream(tensor.get_device()).stream()};
#endif
  return {tensor.is_cuda(), nullptr};
}

kernels::Type kernel_type(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat) return kernels::Type::f32;
  if (tensor.scalar_type() == at::kHalf) return kernels::Type::f16;
  if (tensor.scalar_type() == at::kBFloat16) return kernels::Type::bf16;
  throw core::UsageError(
      fmt::format("Networks compute in float32, float16 or bfloat16, not {}.", c10::toString(tensor.scalar_type())));
}

at::Tensor to_device(const at::Tensor& host, at::Device device) {
  return device.is_cpu() ? host : host.pin_memory().to(device, host.scalar_type(), /*non_blocking=*/true);
}

at::Tensor norm_linear(const at::Tensor& x, const Rows& rows, const at::Tensor& norm_weight,
                       const at::Tensor& norm_bias, const at::Tensor& weight, const at::Tensor& bias, bool fast) {
  const bool keep = at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad());
  return NormLinear::apply(x, rows, norm_weight, norm_bias, weight, if_defined(bias), fast, keep);
}

at::Tensor add_linear(const at::Tensor& x, const Rows& rows, Activation activation, const at::Tensor& input,
                      const at::Tensor& input_bias, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& gamma, bool fast) {
  return AddLinear::apply(x, input, if_defined(input_bias), weight, if_defined(bias), if_defined(gamma), rows,
                          activation, fast);
}

at::Tensor fused_gelu(const at::Tensor& x) {
  return GeluFunction::apply(x.contiguous());
}

}  // namespace allosaur::model
