#pragma once
#include <functional>

#include <ATen/core/Tensor.h>

namespace allosaur::model {

/// function(x), of which only x is kept: the backward pass runs the function again, with gradients, and through it.
/// Gradients of leaves that the function uses are accumulated there. `function` is pure, does not write to x, and lives
/// on in the graph; x requires gradients unless none are wanted at all.
at::Tensor recompute(std::function<at::Tensor(const at::Tensor&)> function, const at::Tensor& x);

}  // namespace allosaur::model
