#include "model/fused.hpp"

#include <cmath>
#include <functional>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "devices.hpp"
#include "model/head.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using Tensors = std::vector<at::Tensor>;

/// A residual branch x[rows] += scale * gamma * linear(activation(linear(layer_norm(x[rows])))) and its inputs.
struct Branch {
  model::Activation activation;
  bool chosen, layer_scale, biased;
  at::Device device;
  Tensors inputs;  // x, norm weight and bias, first weight and bias, second weight and bias, gamma
  model::Rows rows;
  at::Tensor grad;

  Branch(model::Activation which, bool chosen_rows, bool with_gamma, bool with_biases, at::Device where,
         std::int64_t dim)
      : activation(which), chosen(chosen_rows), layer_scale(with_gamma), biased(with_biases), device(where) {
    at::manual_seed(5);
    const std::int64_t tokens = 11, inner = 20, hidden = activation == model::Activation::swiglu ? 40 : inner;
    inputs = {at::randn({tokens, dim}) * 2 + 1,
              at::randn({dim}),
              at::randn({dim}),
              at::randn({hidden, dim}) / std::sqrt(static_cast<double>(dim)),
              at::randn({hidden}),
              at::randn({dim, inner}) * 0.2,
              at::randn({dim}),
              at::randn({dim}) * 1e-3};
    for (at::Tensor& input : inputs) input = input.to(device);
    if (chosen) rows = {at::tensor({7, 0, 10, 3, 4}, at::kLong).to(device), (at::rand({5}) + 1).to(device)};
    grad = at::randn({tokens, dim}).to(device);
  }

  at::Tensor bias(const at::Tensor& tensor) const { return biased ? tensor : at::Tensor(); }

  /// With LibTorch's own operators.
  at::Tensor plain(const Tensors& in) const {
    at::Tensor y = chosen ? in[0].index_select(0, rows.index) : in[0];
    y = at::linear(at::layer_norm(y, {in[0].size(1)}, in[1], in[2], model::kNormEps), in[3], bias(in[4]));
    if (activation == model::Activation::gelu) y = at::gelu(y);
    if (activation == model::Activation::swiglu) y = at::silu(y.chunk(2, 1)[0]) * y.chunk(2, 1)[1];
    y = at::linear(y, in[5], bias(in[6]));
    if (layer_scale) y = y * in[7];
    return chosen ? in[0].index_add(0, rows.index, y * rows.scale.to(y.dtype()).unsqueeze(1)) : in[0] + y;
  }

  at::Tensor fused(const Tensors& in) const {
    const at::Tensor x = in[0].clone();
    // The first bias goes with either half; without an activation only the first half takes it.
    const bool with_activation = activation != model::Activation::none;
    const at::Tensor none, first = with_activation ? none : bias(in[4]), second = with_activation ? bias(in[4]) : none;
    const at::Tensor hidden = model::norm_linear(x, rows, in[1], in[2], in[3], first, false);
    return model::add_linear(x, rows, activation, hidden, second, in[5], bias(in[6]), layer_scale ? in[7] : none,
                             false);
  }

  /// The output and the gradients of all inputs, of numbers rounded to `type`.
  Tensors run(bool ours, at::ScalarType type) const {
    Tensors leaves;
    for (const at::Tensor& input : inputs) leaves.push_back(input.to(type).clone().requires_grad_(true));
    const at::Tensor output = ours ? fused(leaves) : plain(leaves);
    output.backward(grad.to(type));
    Tensors result{output.detach()};
    for (const at::Tensor& leaf : leaves)
      if (leaf.grad().defined()) result.push_back(leaf.grad());
    return result;
  }
};

void compare(const Tensors& ours, const Tensors& theirs, double tolerance) {
  REQUIRE(ours.size() == theirs.size());
  for (std::size_t i = 0; i < ours.size(); ++i) {
    CAPTURE(i);
    const at::Tensor expected = theirs[i].to(at::kDouble);
    CHECK((ours[i].to(at::kDouble) - expected).norm().item<double>() <= tolerance * expected.norm().item<double>());
  }
}

/// Widths of one warp and of many threads, and one that is no multiple of anything.
void for_branches(const std::function<void(const Branch&)>& check) {
  for (const at::Device device : testing::devices())
    for (const std::int64_t dim : {24, 384, 1537})
      for (const auto activation : {model::Activation::none, model::Activation::gelu, model::Activation::swiglu})
        for (const bool chosen : {false, true})
          for (const bool layer_scale : {false, true})
            for (const bool biased : {false, true}) {
              CAPTURE(device.str());
              CAPTURE(dim);
              CAPTURE(biased);
              check(Branch(activation, chosen, layer_scale, biased, device, dim));
            }
}

TEST_CASE("fused residual branches equal LibTorch's operators in float64, with all gradients") {
  for_branches(
      [](const Branch& branch) { compare(branch.run(true, at::kFloat), branch.run(false, at::kDouble), 2e-6); });
}

TEST_CASE("fused residual branches in 16 bits err no more than LibTorch's operators in 16 bits") {
  for_branches([](Branch branch) {
    branch.inputs[7] *= 1e-2;  // gamma about 1e-5, as at the start, and a loss scale
    branch.grad *= 30;
    for (const auto type : {at::kBFloat16, at::kHalf}) {
      for (at::Tensor& input : branch.inputs) input = input.to(type).to(at::kFloat);
      branch.grad = branch.grad.to(type).to(at::kFloat);
      compare(branch.run(true, type), branch.run(false, at::kDouble), type == at::kHalf ? 2e-3 : 2e-2);
    }
  });
}

TEST_CASE("fused branches give the same without gradients") {
  for_branches([](const Branch& branch) {
    const at::Tensor expected = branch.run(true, at::kFloat).front();
    const at::NoGradGuard no_grad;
    CHECK(at::equal(branch.fused(branch.inputs), expected));
  });
}

TEST_CASE("effective prototypes are those of LibTorch's operators") {
  at::manual_seed(2);
  const at::Tensor gain = at::rand({70, 1}) + 0.5, direction = at::randn({70, 300});
  for (const at::Device device : testing::devices())
    for (const auto& [type, tolerance] : {std::pair{at::kFloat, 1e-6}, {at::kHalf, 1e-3}, {at::kBFloat16, 8e-3}}) {
      const at::Tensor g = gain.to(device, type), v = direction.to(device, type), wide = v.to(at::kDouble);
      compare({model::Prototypes{g, v}.effective(at::kFloat)}, {wide * (g.to(at::kDouble) / wide.norm(2, 1, true))},
              tolerance);
    }
}

TEST_CASE("fused GELU equals LibTorch's") {
  for (const at::Device device : testing::devices()) {
    const at::Tensor x = at::linspace(-6, 6, 1001).to(device).requires_grad_(true);
    const at::Tensor y = x.detach().clone().requires_grad_(true);
    const at::Tensor ours = model::fused_gelu(x), theirs = at::gelu(y);
    (ours * ours).sum().backward();
    (theirs * theirs).sum().backward();
    compare({ours.detach(), x.grad()}, {theirs.detach(), y.grad()}, 1e-6);
  }
}

}  // namespace
}  // namespace allosaur
