#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kernels.hpp"
#include "kernels/reference.hpp"
#include "kernels/vector_math.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using testing::Floats;
using testing::relative_error;

ALLOSAUR_KERNEL_TEST("AdamW with EMA follows PyTorch's formula in float64, for any length and alignment") {
  for (const std::int64_t n : {1, 15, 1000, 40'001}) {
    Floats weights(n), teacher(n), exp_avg(n, 0), exp_avg_sq(n, 0);
    std::vector<double> w(weights.begin(), weights.end()), t(teacher.begin(), teacher.end());
    std::vector<double> m(w.size()), v(w.size());
    kernels::AdamWEma k{.n = n,
                        .exp_avg = exp_avg.data(),
                        .exp_avg_sq = exp_avg_sq.data(),
                        .weights = weights.data(),
                        .teacher = teacher.data(),
                        .gradient_scale = 0.25,
                        .lr = 0.01,
                        .weight_decay = 0.4,
                        .beta1 = 0.9,
                        .beta2 = 0.99,
                        .eps = 1e-8,
                        .teacher_momentum = 0.7};
    for (int step = 1; step <= 3; ++step) {
      k.gradient_type = testing::kTypes[static_cast<std::size_t>(step - 1)];
      const testing::Numbers gradient(k.gradient_type, n, 5);
      k.gradient = gradient.data();
      k.correction1 = 1 - std::pow(k.beta1, step);
      k.correction2 = 1 - std::pow(k.beta2, step);
      run(k);
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double g = 0.25 * gradient[static_cast<std::int64_t>(i)];
        w[i] *= 1 - k.lr * k.weight_decay;
        m[i] = k.beta1 * m[i] + (1 - k.beta1) * g;
        v[i] = k.beta2 * v[i] + (1 - k.beta2) * g * g;
        w[i] -= k.lr / k.correction1 * m[i] / (std::sqrt(v[i]) / std::sqrt(k.correction2) + k.eps);
        t[i] = k.teacher_momentum * t[i] + (1 - k.teacher_momentum) * w[i];
      }
    }
    CHECK(relative_error(weights, w, 1) < 1e-6);
    CHECK(relative_error(teacher, t, 1) < 1e-6);
    CHECK(relative_error(exp_avg, m, 1) < 1e-6);
    CHECK(relative_error(exp_avg_sq, v) < 1e-6);
  }
}

ALLOSAUR_KERNEL_TEST("the update writes the compute type's copies of student and teacher") {
  const std::int64_t n = 20'003;
  const Floats gradient(n);
  Floats weights(n, 1e-3), teacher(n, 100), exp_avg(n, 0), exp_avg_sq(n, 0);
  for (const auto type : {kernels::Type::bf16, kernels::Type::f16}) {
    testing::Array<std::uint16_t> student16(static_cast<std::size_t>(n) + 1), teacher16(student16);
    run(kernels::AdamWEma{.n = n,
                          .gradient = gradient.data(),
                          .exp_avg = exp_avg.data(),
                          .exp_avg_sq = exp_avg_sq.data(),
                          .weights = weights.data(),
                          .teacher = teacher.data(),
                          .lr = 1e-4,
                          .correction1 = 0.1,
                          .correction2 = 0.001,
                          .compute_type = type,
                          .student_compute = student16.data() + 1,
                          .teacher_compute = teacher16.data() + 1});
    const bool half = type == kernels::Type::f16;
    const auto back = half ? kernels::cpu::from_f16 : kernels::cpu::from_bf16;
    // Half a unit in the last place: 2^-11 of the value with float16's 10 bits, 2^-8 with bfloat16's 7; float16's
    // subnormal numbers are 2^-24 apart.
    const double relative = half ? 0x1p-11 : 0x1p-8, absolute = half ? 0x1p-25 : 0;
    bool near = true;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(i) + 1;
      for (const auto& [copy, value] : {std::pair{student16[at], weights[i]}, std::pair{teacher16[at], teacher[i]}})
        near = near && std::abs(back(copy) - value) <= std::abs(value) * relative + absolute;
    }
    CHECK(near);
  }
}

TEST_CASE("half precision rounds to nearest, ties to even, and keeps zeros, subnormals, infinities and NaN") {
  const float infinity = std::numeric_limits<float>::infinity();
  using namespace kernels::cpu;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const bool nan16 = (bits & 0x7fffU) > 0x7c00U, nan_b16 = (bits & 0x7fffU) > 0x7f80U;
    REQUIRE((nan16 ? std::isnan(from_f16(half)) : to_f16(from_f16(half)) == half));
    REQUIRE((nan_b16 ? std::isnan(from_bf16(half)) : to_bf16(from_bf16(half)) == half));
  }
  CHECK(from_f16(0x0001) == 0x1p-24F);
  CHECK(from_f16(0x7bff) == 65504.0F);
  CHECK(from_f16(0x3c01) == 1.0F + 0x1p-10F);
  CHECK(to_f16(1.0F + 0x1p-11F) == 0x3c00);             // a tie goes to the even one below ...
  CHECK(to_f16(1.0F + 3 * 0x1p-11F) == 0x3c02);         // ... or above
  CHECK(to_f16(1.0F + 0x1p-11F + 0x1p-20F) == 0x3c01);  // past the tie
  CHECK(to_f16(65519.0F) == 0x7bff);
  CHECK(to_f16(65520.0F) == 0x7c00);
  CHECK(to_f16(-infinity) == 0xfc00);
  CHECK(to_f16(0x1p-25F) == 0);
  CHECK(to_f16(0x1.8p-25F) == 1);
  CHECK((to_f16(std::nanf("")) & 0x7fffU) > 0x7c00U);
  CHECK(to_bf16(1.0F + 0x1p-8F) == 0x3f80);
  CHECK(to_bf16(1.0F + 3 * 0x1p-8F) == 0x3f82);
  CHECK(to_bf16(infinity) == 0x7f80);
  CHECK((to_bf16(std::nanf("")) & 0x7fffU) > 0x7f80U);
}

TEST_CASE("exponential and normal distribution keep float32's accuracy over their whole range") {
  double worst_exp = 0, worst_cdf = 0, worst_pdf = 0;
  for (float x = -87.3F; x < 88.7F; x += 0.0137F)
    worst_exp = std::max(worst_exp, std::abs(kernels::cpu::exp(x) / std::exp(static_cast<double>(x)) - 1));
  for (float x = -12.0F; x < 12.0F; x += 0.00137F) {
    const kernels::cpu::Normal at = kernels::cpu::normal(x);
    const double z = x;
    worst_cdf = std::max(worst_cdf, std::abs(at.cdf / (0.5 * std::erfc(-z * std::sqrt(0.5))) - 1));
    worst_pdf = std::max(worst_pdf, std::abs(at.pdf - std::exp(-0.5 * z * z) / std::sqrt(2 * M_PI)));
  }
  CHECK(worst_exp < 2e-7);
  CHECK(worst_cdf <
        4e-6);  // in the tail: rounding -x^2 / 2 to float32 alone costs x^2 / 2 half units in the last place
  CHECK(worst_pdf < 1e-7);
  CHECK(kernels::cpu::exp(-1e30F) == 0);
  CHECK(kernels::cpu::exp(100.0F) == std::numeric_limits<float>::infinity());
  CHECK(kernels::cpu::exp(0.0F) == 1);
  CHECK(std::isnan(kernels::cpu::exp(std::nanf(""))));
}

}  // namespace
}  // namespace allosaur
