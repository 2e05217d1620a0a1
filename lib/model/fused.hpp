#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "kernels/kernels.hpp"

namespace allosaur::model {

/// Where a tensor's kernels run, and how its numbers are stored (f32, f16 or bf16; else core::UsageError).
kernels::Device kernel_device(const at::Tensor& tensor);
kernels::Type kernel_type(const at::Tensor& tensor);
/// `host` on a device, on the CPU itself. A GPU is not waited for: it copies, from page-locked memory, in its own time.
at::Tensor to_device(const at::Tensor& host, at::Device device);

// The halves of a residual branch, differentiable. What is cheap to compute again is not kept for the backward pass:
// the normalised input, the activation and the branch's output.

/// The rows of a packed sequence that a branch works on.
struct Rows {
  at::Tensor index;   // i64 [n], without repetition; undefined: all rows
  at::Tensor scale;   // f32 [n], of the branch's output; undefined: 1
  bool vary = false;  // in number, from iteration to iteration
};

/// linear(layer_norm(x[rows])), x [T, D], weight [out, D], bias [out] or undefined (then who reads the result adds it,
/// without a pass of its own); returns [n, out]. Keeps x[rows]. `fast`: see Products.
at::Tensor norm_linear(const at::Tensor& x, const Rows& rows, const at::Tensor& norm_weight,
                       const at::Tensor& norm_bias, const at::Tensor& weight, const at::Tensor& bias, bool fast);

enum class Activation : std::uint8_t { none, gelu, swiglu };

/// x[rows] += scale * gamma * linear(activation(input + input_bias)), in place, so that x must be no leaf and no view;
/// returns x. x [T, D], input [n, in] (swiglu: [n, 2 in]), input_bias as wide or undefined, as it is without an
/// activation; weight [D, in], bias and gamma [D] or undefined. Keeps the input.
at::Tensor add_linear(const at::Tensor& x, const Rows& rows, Activation activation, const at::Tensor& input,
                      const at::Tensor& input_bias, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& gamma, bool fast);

/// Exact GELU, differentiable. Keeps x.
at::Tensor fused_gelu(const at::Tensor& x);

inline constexpr double kNormEps = 1e-6;

}  // namespace allosaur::model
