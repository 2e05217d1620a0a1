#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/reference.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using testing::Floats;
using testing::relative_error;

constexpr std::array<std::int64_t, 4> kDims{1, 13, 384, 1537};

/// Central differences of a function in float64, weighted by `weight` over its outputs, for each input.
std::vector<double> differences(const std::function<std::vector<double>(const std::vector<double>&)>& f,
                                std::vector<double> x, const Floats& weight) {
  constexpr double kStep = 1e-5;
  std::vector<double> gradient;
  for (double& value : x) {
    const double at = value;
    const auto weighted = [&](double moved) {
      value = moved;
      double sum = 0;
      const std::vector<double> y = f(x);
      for (std::size_t i = 0; i < y.size(); ++i) sum += weight[static_cast<std::int64_t>(i)] * y[i];
      return sum;
    };
    const double high = weighted(at + kStep), low = weighted(at - kStep);
    value = at;
    gradient.push_back((high - low) / (2 * kStep));
  }
  return gradient;
}

std::vector<double> doubles(const Floats& x) {
  return {x.begin(), x.end()};
}

/// x, weight and bias one after the other.
std::vector<double> layer_norm(const std::vector<double>& all, std::size_t rows, std::size_t dim) {
  std::vector<double> y;
  for (std::size_t i = 0; i < rows; ++i) {
    const double* x = all.data() + i * dim;
    double mean = 0, variance = 0;
    for (std::size_t k = 0; k < dim; ++k) mean += x[k] / static_cast<double>(dim);
    for (std::size_t k = 0; k < dim; ++k) variance += (x[k] - mean) * (x[k] - mean) / static_cast<double>(dim);
    for (std::size_t k = 0; k < dim; ++k)
      y.push_back((x[k] - mean) / std::sqrt(variance + 1e-6) * all[rows * dim + k] + all[(rows + 1) * dim + k]);
  }
  return y;
}

TEST_CASE("layer norm of chosen rows") {
  for (const std::int64_t dim : kDims) {
    const std::int64_t rows = 5;
    const std::vector<std::int64_t> index{6, 0, 3, 2, 4};
    const Floats x(7 * dim, 2, 3), weight(dim), bias(dim);
    Floats output(rows * dim), gathered(rows * dim), mean(rows), rstd(rows);
    kernels::run({}, kernels::LayerNorm{.rows = rows,
                                        .dim = dim,
                                        .x = x.data(),
                                        .index = index.data(),
                                        .weight = weight.data(),
                                        .bias = bias.data(),
                                        .output = output.data(),
                                        .gathered = gathered.data(),
                                        .mean = mean.data(),
                                        .rstd = rstd.data()});
    std::vector<double> all;
    for (const std::int64_t i : index) all.insert(all.end(), x.data() + i * dim, x.data() + (i + 1) * dim);
    CHECK(relative_error(gathered, all) == 0);
    all.insert(all.end(), weight.begin(), weight.end());
    all.insert(all.end(), bias.begin(), bias.end());
    CHECK(relative_error(output, layer_norm(all, 5, static_cast<std::size_t>(dim)), 1) < 3e-6);
  }
}

TEST_CASE("layer norm's gradients equal finite differences, and sums over many rows do not lose any") {
  const std::int64_t rows = 3, dim = 13;
  const Floats x(rows * dim, 2, 1), weight(dim), bias(dim), grad(rows * dim);
  Floats output(rows * dim), mean(rows), rstd(rows), grad_x(5 * dim, 0), grad_weight(dim), grad_bias(dim);
  kernels::run({}, kernels::LayerNorm{.rows = rows,
                                      .dim = dim,
                                      .x = x.data(),
                                      .weight = weight.data(),
                                      .bias = bias.data(),
                                      .output = output.data(),
                                      .mean = mean.data(),
                                      .rstd = rstd.data()});
  const std::vector<std::int64_t> index{4, 1, 0};
  kernels::LayerNormBackward backward{.rows = rows,
                                      .dim = dim,
                                      .x = x.data(),
                                      .mean = mean.data(),
                                      .rstd = rstd.data(),
                                      .weight = weight.data(),
                                      .grad_output = grad.data(),
                                      .index = index.data(),
                                      .grad_x = grad_x.data(),
                                      .grad_weight = grad_weight.data(),
                                      .grad_bias = grad_bias.data()};
  kernels::run({}, backward);
  std::vector<double> all = doubles(x);
  all.insert(all.end(), weight.begin(), weight.end());
  all.insert(all.end(), bias.begin(), bias.end());
  const std::vector<double> expected =
      differences([](const std::vector<double>& v) { return layer_norm(v, 3, 13); }, all, grad);
  std::vector<double> scattered(5 * 13);
  for (std::size_t i = 0; i < 3; ++i)
    std::copy_n(expected.begin() + static_cast<std::ptrdiff_t>(i * 13), 13,
                scattered.begin() + static_cast<std::ptrdiff_t>(index[i] * 13));
  CHECK(relative_error(grad_x, scattered) < 1e-5);
  CHECK(relative_error(grad_weight, std::vector<double>(expected.begin() + 39, expected.begin() + 52)) < 1e-5);
  CHECK(relative_error(grad_bias, std::vector<double>(expected.begin() + 52, expected.end())) < 1e-5);

  const std::int64_t many = 5003;
  const Floats long_x(many * dim), ones(many * dim, 0, 1), zero(many, 0), one(many, 0, 1);
  Floats long_grad_x(many * dim);
  backward.rows = many;
  backward.x = long_x.data();
  backward.mean = zero.data();
  backward.rstd = one.data();
  backward.grad_output = ones.data();
  backward.index = nullptr;
  backward.grad_x = long_grad_x.data();
  kernels::run({}, backward);
  std::vector<double> sums(13);
  for (std::int64_t i = 0; i < long_x.size(); ++i) sums[static_cast<std::size_t>(i % dim)] += long_x[i];
  CHECK(relative_error(grad_weight, sums, 10) < 1e-5);
  for (const float value : grad_bias) CHECK(value == static_cast<float>(many));
}

TEST_CASE("GELU and its gradient, in place too") {
  for (const std::int64_t dim : kDims) {
    const std::int64_t rows = 13, n = rows * dim;
    const Floats x(n, 3), bias(dim), grad(n);
    Floats output = x, grad_x = grad;
    std::vector<double> y, dx;
    for (std::int64_t i = 0; i < n; ++i) {
      const double z = x[i] + bias[i % dim], cdf = 0.5 * std::erfc(-z * std::sqrt(0.5));
      y.push_back(z * cdf);
      dx.push_back(grad[i] * (cdf + z * std::exp(-0.5 * z * z) / std::sqrt(2 * M_PI)));
    }
    kernels::run(
        {}, kernels::Gelu{.rows = rows, .dim = dim, .x = output.data(), .bias = bias.data(), .output = output.data()});
    CHECK(relative_error(output, y, 1) < 4e-7);
    kernels::run({}, kernels::GeluBackward{.rows = rows,
                                           .dim = dim,
                                           .x = x.data(),
                                           .bias = bias.data(),
                                           .grad_output = grad_x.data(),
                                           .grad_x = grad_x.data()});
    CHECK(relative_error(grad_x, dx, 1) < 6e-7);
  }
  Floats extreme(4, 0);
  extreme[0] = -1e30F;
  extreme[1] = 1e30F;
  extreme[2] = -50;
  kernels::run({}, kernels::Gelu{.rows = 1, .dim = 4, .x = extreme.data(), .output = extreme.data()});
  CHECK(extreme[0] == 0);
  CHECK(extreme[1] == 1e30F);
  CHECK(extreme[2] == 0);
}

TEST_CASE("SwiGLU and its gradient") {
  for (const std::int64_t hidden : {1, 17, 1024}) {
    const std::int64_t rows = 3;
    const Floats x(rows * 2 * hidden, 3), bias(2 * hidden), grad(rows * hidden);
    Floats output(rows * hidden), grad_x = x;
    std::vector<double> y, dx(static_cast<std::size_t>(x.size()));
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t k = 0; k < hidden; ++k) {
        const std::int64_t gate = i * 2 * hidden + k;
        const double a = x[gate] + bias[k], b = x[gate + hidden] + bias[k + hidden], s = 1 / (1 + std::exp(-a)),
                     g = grad[i * hidden + k];
        y.push_back(a * s * b);
        dx[static_cast<std::size_t>(gate)] = g * b * (s + a * s * (1 - s));
        dx[static_cast<std::size_t>(gate + hidden)] = g * a * s;
      }
    kernels::run({}, kernels::SwiGlu{
                         .rows = rows, .hidden = hidden, .x = x.data(), .bias = bias.data(), .output = output.data()});
    CHECK(relative_error(output, y) < 1e-6);
    kernels::run({}, kernels::SwiGluBackward{.rows = rows,
                                             .hidden = hidden,
                                             .x = grad_x.data(),
                                             .bias = bias.data(),
                                             .grad_output = grad.data(),
                                             .grad_x = grad_x.data()});
    CHECK(relative_error(grad_x, dx) < 1e-6);
  }
}

TEST_CASE("residual additions touch the chosen rows only, and gathering is their transpose") {
  for (const std::int64_t dim : kDims) {
    const std::vector<std::int64_t> index{4, 0, 2};
    const Floats branch(3 * dim), gamma(dim), bias(dim), scale(3), before(5 * dim);
    for (const bool chosen : {false, true}) {
      Floats x = before, gathered(3 * dim);
      const kernels::ResidualAdd add{.rows = 3,
                                     .dim = dim,
                                     .x = x.data(),
                                     .index = chosen ? index.data() : nullptr,
                                     .scale = chosen ? scale.data() : nullptr,
                                     .gamma = chosen ? gamma.data() : nullptr,
                                     .bias = chosen ? bias.data() : nullptr,
                                     .branch = branch.data()};
      kernels::run({}, add);
      std::vector<double> expected = doubles(before), rows;
      for (std::int64_t i = 0; i < 3; ++i)
        for (std::int64_t k = 0; k < dim; ++k) {
          const std::int64_t to = (chosen ? index[static_cast<std::size_t>(i)] : i) * dim + k;
          const double s = chosen ? scale[i] : 1;
          expected[static_cast<std::size_t>(to)] +=
              s * (chosen ? gamma[k] : 1) * (branch[i * dim + k] + (chosen ? bias[k] : 0));
          rows.push_back(s * before[to]);
        }
      CHECK(relative_error(x, expected) < 1e-6);
      kernels::run({}, kernels::ResidualGather{.rows = 3,
                                               .dim = dim,
                                               .x = before.data(),
                                               .index = add.index,
                                               .scale = add.scale,
                                               .output = gathered.data()});
      CHECK(relative_error(gathered, rows) < 1e-6);
    }
  }
}

}  // namespace
}  // namespace allosaur
