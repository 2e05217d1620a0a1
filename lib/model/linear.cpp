#include "model/linear.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#ifdef ALLOSAUR_HAVE_ONE_DNN
namespace at::native {
/// result = beta * result + alpha * a b. LibTorch has it in its library, but not in its headers.
void mkldnn_matmul(const at::Tensor& a, const at::Tensor& b, const at::Tensor& result, float beta, float alpha);
}  // namespace at::native
#endif

namespace allosaur::model {

namespace {

#if defined(ALLOSAUR_HAVE_ONE_DNN) && defined(__x86_64__)
/// Where oneDNN multiplies faster: measured on AMD's Zen 4, for which MKL has no kernels with AVX-512.
bool one_dnn_is_faster() {
  static const bool faster = !__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
  return faster;
}
/// oneDNN makes a program for every shape and keeps it, about a megabyte each: where the numbers of rows vary, only
/// those with few significant bits go to it. Less than an eighth is left over.
std::int64_t regular_rows(std::int64_t rows) {
  const auto largest = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(rows)));
  return rows - rows % std::max<std::int64_t>(1, largest / 8);
}
/// out = beta * out + factor * a b. What varies is the number of tokens: the rows of `a`, or its columns where it is
/// transposed.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, double beta, double factor,
              bool rows_vary) {
  const auto by_one_dnn = [&](const at::Tensor& to, const at::Tensor& x, const at::Tensor& y) {
    at::native::mkldnn_matmul(x, y, to, static_cast<float>(beta), static_cast<float>(factor));
  };
  const std::int64_t dim = a.stride(1) == 1 ? 0 : 1, rows = a.size(dim),
                     regular = rows_vary ? regular_rows(rows) : rows, rest = rows - regular;
  const at::Tensor first = a.narrow(dim, 0, regular), last = a.narrow(dim, regular, rest);
  if (dim == 0) {
    by_one_dnn(out.narrow(0, 0, regular), first, b);
    if (rest > 0) out.narrow(0, regular, rest).addmm_(last, b, beta, factor);
  } else {
    by_one_dnn(out, first, b.narrow(0, 0, regular));
    if (rest > 0) out.addmm_(last, b.narrow(0, regular, rest), 1, factor);
  }
}
#else
bool one_dnn_is_faster() {
  return false;
}
void multiply(const at::Tensor&, const at::Tensor&, const at::Tensor&, double, double, bool) {}
#endif

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& bias, bool fast) {
    context->save_for_backward({x, weight});
    context->saved_data["fast"] = fast;
    return Products(fast).linear(x, weight, bias);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grad_output) {
    const Products products(context->saved_data["fast"].toBool());
    const auto saved = context->get_saved_variables();
    const at::Tensor grad = grad_output[0].contiguous();  // [n, out]
    at::Tensor grad_x;
    if (context->needs_input_grad(0)) grad_x = products.of(grad, saved[1]);
    return {grad_x, products.of(grad.t(), saved[0]), grad.sum(0), {}};
  }
};

}  // namespace

Products::Products(bool fast, bool rows_vary) : fast_(fast), rows_vary_(rows_vary) {
  if (fast_) at::globalContext().setFloat32MatmulPrecision("medium");
}

Products::~Products() {
  if (fast_) at::globalContext().setFloat32MatmulPrecision("highest");
}

bool Products::by_one_dnn(const at::Tensor& a, const at::Tensor& b) const {
  return !fast_ && one_dnn_is_faster() && a.is_cpu() && a.scalar_type() == at::kFloat && a.numel() > 0 && b.numel() > 0;
}

at::Tensor Products::of(const at::Tensor& a, const at::Tensor& b) const {
  if (!by_one_dnn(a, b)) return at::mm(a, b);
  at::Tensor out = at::empty({a.size(0), b.size(1)}, a.options());
  multiply(out, a, b, 0, 1, rows_vary_);
  return out;
}

void Products::write(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) const {
  if (by_one_dnn(a, b))
    multiply(out, a, b, 0, 1, rows_vary_);
  else
    at::mm_out(out, a, b);
}

void Products::add(at::Tensor& out, const at::Tensor& a, const at::Tensor& b, double factor) const {
  if (by_one_dnn(a, b))
    multiply(out, a, b, 1, factor, rows_vary_);
  else
    out.addmm_(a, b, 1, factor);
}

at::Tensor Products::linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) const {
  if (!by_one_dnn(x, weight)) return at::linear(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
  if (!bias.defined()) return of(x, weight.t());
  at::Tensor out = bias.expand({x.size(0), -1}).contiguous();
  add(out, x, weight.t());
  return out;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool fast) {
  std::vector<std::int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return Linear::apply(x.reshape({-1, weight.size(1)}), weight, bias, fast).view(shape);
}

}  // namespace allosaur::model
