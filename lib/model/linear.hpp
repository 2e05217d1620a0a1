#pragma once
#include <ATen/core/Tensor.h>

namespace allosaur::model {

/// x W^T + b, x [..., in], weight [out, in]. With `fast`, float32 factors are rounded to bfloat16 and summed in float32, forward
/// and backward: three times the rate where the CPU has AMX. Only here: in attention's many small products the conversion
/// would cost more than it saves.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool fast);

}  // namespace allosaur::model
