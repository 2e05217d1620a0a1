#include "model/linear.hpp"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace allosaur::model {

namespace {

struct FastLinear : torch::autograd::Function<FastLinear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias) {
    const Products products(true);
    context->save_for_backward({x, weight});
    return at::linear(x, weight, bias);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad_output) {
    const Products products(true);
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor grad = grad_output[0].reshape({-1, weight.size(0)});  // [n, out]
    at::Tensor grad_x;
    if (context->needs_input_grad(0)) grad_x = at::mm(grad, weight).view(x.sizes());
    return {grad_x, at::mm(grad.t(), x.reshape({-1, weight.size(1)})), grad.sum(0)};
  }
};

}  // namespace

Products::Products(bool fast) : fast_(fast) {
  if (fast_) at::globalContext().setFloat32MatmulPrecision("medium");
}

Products::~Products() {
  if (fast_) at::globalContext().setFloat32MatmulPrecision("highest");
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool fast) {
  return fast ? FastLinear::apply(x, weight, bias) : at::linear(x, weight, bias);
}

}  // namespace allosaur::model
