#include "model/linear.hpp"

#include <cmath>

#include <ATen/ATen.h>

#include "devices.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

void check(const at::Tensor& ours, const at::Tensor& theirs) {
  CHECK((ours - theirs).norm().item<double>() <= 2e-6 * theirs.norm().item<double>());
}

TEST_CASE("products of any number of rows equal LibTorch's, written, added and of transposes") {
  at::manual_seed(4);
  for (const at::Device device : testing::devices())
    for (const std::int64_t rows : {0, 1, 7, 64, 193, 283}) {
      CAPTURE(rows);
      const model::Products products(false);
      const at::Tensor x = at::randn({rows, 40}).to(device), weight = at::randn({24, 40}).to(device),
                       bias = at::randn({24}).to(device), grad = at::randn({rows, 24}).to(device);
      const at::Tensor expected = at::matmul(x.to(at::kDouble), weight.t().to(at::kDouble)),
                       of_weight = at::matmul(grad.t().to(at::kDouble), x.to(at::kDouble));
      check(products.of(x, weight.t()), expected);
      check(products.linear(x, weight, bias), expected + bias);
      check(products.of(grad, weight), at::matmul(grad.to(at::kDouble), weight.to(at::kDouble)));
      check(products.of(grad.t(), x), of_weight);
      at::Tensor written = at::full({rows, 24}, NAN, x.options()), sum = at::ones({24, 40}, x.options());
      products.write(written, x, weight.t());
      check(written, expected);
      products.add(sum, grad.t(), x, 0.5);
      check(sum, of_weight * 0.5 + 1);
    }
}

}  // namespace
}  // namespace allosaur
