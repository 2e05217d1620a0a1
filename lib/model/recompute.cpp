#include "model/recompute.hpp"

#include <utility>

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace allosaur::model {

namespace {

using Body = std::function<at::Tensor(const at::Tensor&)>;

struct Holder : torch::CustomClassHolder {
  explicit Holder(Body body) : function(std::move(body)) {}
  Body function;
};

struct Function : torch::autograd::Function<Function> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const c10::intrusive_ptr<Holder>& holder) {
    context->save_for_backward({x});
    context->saved_data["function"] = c10::IValue::make_capsule(holder);
    return holder->function(x);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad_output) {
    const auto holder = c10::static_intrusive_pointer_cast<Holder>(context->saved_data["function"].toCapsule());
    const at::Tensor x = context->get_saved_variables().front().detach().requires_grad_(true);
    const at::AutoGradMode enabled(true);
    torch::autograd::backward({holder->function(x)}, {grad_output.front()});
    return {x.grad(), {}};
  }
};

}  // namespace

at::Tensor recompute(Body function, const at::Tensor& x) {
  return Function::apply(x, c10::make_intrusive<Holder>(std::move(function)));
}

}  // namespace allosaur::model
