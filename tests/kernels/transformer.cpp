#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/reference.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using testing::Array;
using testing::Floats;
using testing::kTypes;
using testing::Numbers;
using testing::relative_error;
using testing::rounding;

constexpr std::array<std::int64_t, 4> kDims{1, 13, 384, 1537};

/// Central differences of a function in float64, weighted by `weight` over its outputs, for each input.
std::vector<double> differences(const std::function<std::vector<double>(const std::vector<double>&)>& f,
                                std::vector<double> x, const Numbers& weight) {
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

void append(std::vector<double>& to, const auto& x) {
  for (std::int64_t i = 0; i < x.size(); ++i) to.push_back(x[i]);
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

ALLOSAUR_KERNEL_TEST("layer norm of all rows or chosen ones") {
  for (const kernels::Type type : kTypes)
    for (const std::int64_t dim : kDims)
      for (const bool chosen : {false, true}) {
        const std::int64_t rows = 5;
        const Array<std::int64_t> index{6, 0, 3, 2, 4};
        const Numbers x(type, 7 * dim, 2, 3);
        const Floats weight(dim), bias(dim);
        Numbers output(type, rows * dim), gathered(type, rows * dim);
        Floats mean(rows), rstd(rows);
        run(kernels::LayerNorm{.rows = rows,
                               .dim = dim,
                               .type = type,
                               .x = x.data(),
                               .index = chosen ? index.data() : nullptr,
                               .weight = weight.data(),
                               .bias = bias.data(),
                               .output = output.data(),
                               .gathered = chosen ? gathered.data() : nullptr,
                               .mean = chosen ? mean.data() : nullptr,
                               .rstd = chosen ? rstd.data() : nullptr});
        std::vector<double> all;
        for (std::int64_t i = 0; i < rows; ++i)
          for (std::int64_t k = 0; k < dim; ++k)
            all.push_back(x[(chosen ? index[static_cast<std::size_t>(i)] : i) * dim + k]);
        if (chosen) CHECK(relative_error(gathered, all) == 0);
        append(all, weight);
        append(all, bias);
        CHECK(relative_error(output, layer_norm(all, 5, static_cast<std::size_t>(dim)), 1) < 3e-6 + rounding(type));
      }
}

ALLOSAUR_KERNEL_TEST("layer norm's gradients equal finite differences") {
  for (const kernels::Type type : kTypes) {
    const std::int64_t rows = 3, dim = 13;
    const Numbers x(type, rows * dim, 2, 1), grad(type, rows * dim);
    const Floats weight(dim), bias(dim);
    Numbers output(type, rows * dim), grad_x(type, 5 * dim, 0);
    Floats mean(rows), rstd(rows), grad_weight(dim), grad_bias(dim), workspace(kernels::kLayerNormSlices * 2 * dim);
    run(kernels::LayerNorm{.rows = rows,
                           .dim = dim,
                           .type = type,
                           .x = x.data(),
                           .weight = weight.data(),
                           .bias = bias.data(),
                           .output = output.data(),
                           .mean = mean.data(),
                           .rstd = rstd.data()});
    const Array<std::int64_t> index{4, 1, 0};
    run(kernels::LayerNormBackward{.rows = rows,
                                   .dim = dim,
                                   .type = type,
                                   .x = x.data(),
                                   .mean = mean.data(),
                                   .rstd = rstd.data(),
                                   .weight = weight.data(),
                                   .grad_output = grad.data(),
                                   .index = index.data(),
                                   .grad_x = grad_x.data(),
                                   .grad_weight = grad_weight.data(),
                                   .grad_bias = grad_bias.data(),
                                   .workspace = workspace.data()});
    std::vector<double> all;
    append(all, x);
    append(all, weight);
    append(all, bias);
    const std::vector<double> expected =
        differences([](const std::vector<double>& v) { return layer_norm(v, 3, 13); }, all, grad);
    std::vector<double> scattered(5 * 13);
    for (std::size_t i = 0; i < 3; ++i)
      std::copy_n(expected.begin() + static_cast<std::ptrdiff_t>(i * 13), 13,
                  scattered.begin() + static_cast<std::ptrdiff_t>(index[i] * 13));
    CHECK(relative_error(grad_x, scattered) < 1e-5 + rounding(type));
    CHECK(relative_error(grad_weight, std::vector<double>(expected.begin() + 39, expected.begin() + 52)) < 1e-5);
    CHECK(relative_error(grad_bias, std::vector<double>(expected.begin() + 52, expected.end())) < 1e-5);
  }
}

ALLOSAUR_KERNEL_TEST("the gradients of layer norm's parameters are sums over all rows, many or none") {
  for (const auto& [rows, dim] : {std::pair<std::int64_t, std::int64_t>{0, 40}, {1, 1}, {203, 33}, {4099, 5}}) {
    const Floats x(rows * dim), ones(rows * dim, 0, 1), zero(rows, 0), one(rows, 0, 1), weight(dim);
    Floats grad_x(rows * dim), grad_weight(dim), grad_bias(dim), workspace(kernels::kLayerNormSlices * 2 * dim);
    run(kernels::LayerNormBackward{.rows = rows,
                                   .dim = dim,
                                   .x = x.data(),
                                   .mean = zero.data(),
                                   .rstd = one.data(),
                                   .weight = weight.data(),
                                   .grad_output = ones.data(),
                                   .grad_x = grad_x.data(),
                                   .grad_weight = grad_weight.data(),
                                   .grad_bias = grad_bias.data(),
                                   .workspace = workspace.data()});
    std::vector<double> sums(static_cast<std::size_t>(dim));
    for (std::int64_t i = 0; i < x.size(); ++i) sums[static_cast<std::size_t>(i % dim)] += x[i];
    CHECK(relative_error(grad_weight, sums, 10) < 1e-5);
    for (const float value : grad_bias) CHECK(value == static_cast<float>(rows));
  }
}

ALLOSAUR_KERNEL_TEST("GELU and its gradient, with a bias or none, in place too") {
  for (const kernels::Type type : kTypes)
    for (const std::int64_t dim : kDims)
      for (const bool biased : {false, true}) {
        const std::int64_t rows = 13, n = rows * dim;
        const Numbers x(type, n, 3), grad(type, n);
        const Floats bias(dim);
        Numbers output = x, over_grad = grad, over_x = x;
        std::vector<double> y, dx;
        for (std::int64_t i = 0; i < n; ++i) {
          const double z = x[i] + (biased ? bias[i % dim] : 0), cdf = 0.5 * std::erfc(-z * std::sqrt(0.5));
          y.push_back(z * cdf);
          dx.push_back(grad[i] * (cdf + z * std::exp(-0.5 * z * z) / std::sqrt(2 * M_PI)));
        }
        const float* offset = biased ? bias.data() : nullptr;
        run(kernels::Gelu{
            .rows = rows, .dim = dim, .type = type, .x = output.data(), .bias = offset, .output = output.data()});
        CHECK(relative_error(output, y, 1) < 4e-7 + rounding(type));
        kernels::GeluBackward backward{.rows = rows,
                                       .dim = dim,
                                       .type = type,
                                       .x = x.data(),
                                       .bias = offset,
                                       .grad_output = over_grad.data(),
                                       .grad_x = over_grad.data()};
        run(backward);
        CHECK(relative_error(over_grad, dx, 1) < 6e-7 + rounding(type));
        backward.grad_output = grad.data();
        backward.x = backward.grad_x = over_x.data();
        run(backward);
        CHECK(relative_error(over_x, dx, 1) < 6e-7 + rounding(type));
      }
  Floats extreme(4, 0);
  extreme[0] = -1e30F;
  extreme[1] = 1e30F;
  extreme[2] = -50;
  run(kernels::Gelu{.rows = 1, .dim = 4, .x = extreme.data(), .output = extreme.data()});
  CHECK(extreme[0] == 0);
  CHECK(extreme[1] == 1e30F);
  CHECK(extreme[2] == 0);
}

ALLOSAUR_KERNEL_TEST("SwiGLU and its gradient, with a bias or none, in place too") {
  for (const kernels::Type type : kTypes)
    for (const std::int64_t hidden : {1, 17, 1024})
      for (const bool biased : {false, true}) {
        const std::int64_t rows = 3;
        const Numbers x(type, rows * 2 * hidden, 3), grad(type, rows * hidden);
        const Floats bias(2 * hidden);
        Numbers output(type, rows * hidden), grad_x = x;
        std::vector<double> y, dx(static_cast<std::size_t>(x.size()));
        for (std::int64_t i = 0; i < rows; ++i)
          for (std::int64_t k = 0; k < hidden; ++k) {
            const std::int64_t gate = i * 2 * hidden + k;
            const double a = x[gate] + (biased ? bias[k] : 0), b = x[gate + hidden] + (biased ? bias[k + hidden] : 0),
                         s = 1 / (1 + std::exp(-a)), g = grad[i * hidden + k];
            y.push_back(a * s * b);
            dx[static_cast<std::size_t>(gate)] = g * b * (s + a * s * (1 - s));
            dx[static_cast<std::size_t>(gate + hidden)] = g * a * s;
          }
        const float* offset = biased ? bias.data() : nullptr;
        run(kernels::SwiGlu{
            .rows = rows, .hidden = hidden, .type = type, .x = x.data(), .bias = offset, .output = output.data()});
        CHECK(relative_error(output, y) < 1e-6 + rounding(type));
        run(kernels::SwiGluBackward{.rows = rows,
                                    .hidden = hidden,
                                    .type = type,
                                    .x = grad_x.data(),
                                    .bias = offset,
                                    .grad_output = grad.data(),
                                    .grad_x = grad_x.data()});
        CHECK(relative_error(grad_x, dx) < 1e-6 + rounding(type));
      }
}

ALLOSAUR_KERNEL_TEST("residual additions touch the chosen rows only, and gathering is their transpose") {
  for (const kernels::Type type : kTypes)
    for (const std::int64_t dim : kDims)
      for (const bool chosen : {false, true}) {
        const Array<std::int64_t> index{4, 0, 2};
        const Numbers branch(type, 3 * dim), before(type, 5 * dim);
        const Floats gamma(dim), bias(dim), scale(3);
        Numbers x = before, gathered(type, 3 * dim);
        const kernels::ResidualAdd add{.rows = 3,
                                       .dim = dim,
                                       .type = type,
                                       .x = x.data(),
                                       .index = chosen ? index.data() : nullptr,
                                       .scale = chosen ? scale.data() : nullptr,
                                       .gamma = chosen ? gamma.data() : nullptr,
                                       .bias = chosen ? bias.data() : nullptr,
                                       .branch = branch.data()};
        run(add);
        std::vector<double> expected, rows;
        append(expected, before);
        for (std::int64_t i = 0; i < 3; ++i)
          for (std::int64_t k = 0; k < dim; ++k) {
            const std::int64_t to = (chosen ? index[static_cast<std::size_t>(i)] : i) * dim + k;
            const double s = chosen ? scale[i] : 1;
            expected[static_cast<std::size_t>(to)] +=
                s * (chosen ? gamma[k] : 1) * (branch[i * dim + k] + (chosen ? bias[k] : 0));
            rows.push_back(s * before[to]);
          }
        CHECK(relative_error(x, expected) < 1e-6 + rounding(type));
        run(kernels::ResidualGather{.rows = 3,
                                    .dim = dim,
                                    .type = type,
                                    .x = before.data(),
                                    .index = add.index,
                                    .scale = add.scale,
                                    .output = gathered.data()});
        CHECK(relative_error(gathered, rows) < 1e-6 + rounding(type));
      }
}

ALLOSAUR_KERNEL_TEST("weight normalisation, in every pair of types") {
  for (const kernels::Type type : kTypes)
    for (const kernels::Type output_type : kTypes)
      for (const std::int64_t dim : kDims) {
        const std::int64_t rows = 3;
        const Numbers gain(type, rows), direction(type, rows * dim);
        Numbers output(output_type, rows * dim);
        std::vector<double> y;
        for (std::int64_t i = 0; i < rows * dim; i += dim) {
          double squares = 0;
          for (std::int64_t k = i; k < i + dim; ++k) squares += static_cast<double>(direction[k]) * direction[k];
          for (std::int64_t k = i; k < i + dim; ++k) y.push_back(gain[i / dim] * direction[k] / std::sqrt(squares));
        }
        run(kernels::WeightNorm{.rows = rows,
                                .dim = dim,
                                .type = type,
                                .output_type = output_type,
                                .gain = gain.data(),
                                .direction = direction.data(),
                                .output = output.data()});
        CHECK(relative_error(output, y) < 3e-6 + rounding(output_type));
      }
}

ALLOSAUR_KERNEL_TEST("gradients behind a weight normalisation, and those of a second call on top") {
  for (const std::int64_t dim : kDims) {
    const std::int64_t rows = 3;
    const Floats gain(rows), direction(rows * dim), first(rows * dim), second(rows * dim);  // of the prototypes
    Floats scale(rows), grad_direction(rows * dim), grad_gain(rows);
    const kernels::WeightNormBackward backward{.rows = rows,
                                               .dim = dim,
                                               .direction = direction.data(),
                                               .scale = scale.data(),
                                               .grad_direction = grad_direction.data(),
                                               .grad_gain = grad_gain.data()};
    std::ranges::fill(grad_direction, 0);
    std::vector<double> dv(static_cast<std::size_t>(rows * dim));
    for (const Floats* grad : {&first, &second}) {
      std::vector<double> dg;
      for (std::int64_t row = 0; row < rows; ++row) {
        double squares = 0, product = 0;
        for (std::int64_t k = row * dim; k < (row + 1) * dim; ++k) {
          squares += static_cast<double>(direction[k]) * direction[k];
          product += static_cast<double>(direction[k]) * (*grad)[k];
        }
        const double norm = std::sqrt(squares);
        scale[row] = static_cast<float>(gain[row] / norm);
        dg.push_back(product / norm);
        for (std::int64_t k = row * dim; k < (row + 1) * dim; ++k) {
          dv[static_cast<std::size_t>(k)] += gain[row] / norm * ((*grad)[k] - product / squares * direction[k]);
          grad_direction[k] += scale[row] * (*grad)[k];
        }
      }
      run(backward);
      CHECK(relative_error(grad_gain, dg, 1) < 1e-5);
      CHECK(relative_error(grad_direction, dv, 1) < 3e-6);
    }
  }
}

ALLOSAUR_KERNEL_TEST("kernels of no rows do nothing") {
  run(kernels::AdamWEma{});
  run(kernels::TargetRows{.prototypes = 3});
  run(kernels::CrossEntropyRows{.prototypes = 3});
  run(kernels::RowLogSumExp{.prototypes = 3});
  run(kernels::LayerNorm{.dim = 3});
  run(kernels::Gelu{.dim = 3});
  run(kernels::GeluBackward{.dim = 3});
  run(kernels::SwiGlu{.hidden = 3});
  run(kernels::SwiGluBackward{.hidden = 3});
  run(kernels::ResidualAdd{.dim = 3});
  run(kernels::ResidualGather{.dim = 3});
  run(kernels::WeightNorm{.dim = 3});
  run(kernels::WeightNormBackward{.dim = 3});
  run(kernels::FinishCrops{.height = 3, .width = 3});
}

}  // namespace
}  // namespace allosaur
