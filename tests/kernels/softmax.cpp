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

double log_sum_exp(const std::vector<double>& z) {
  const double largest = *std::ranges::max_element(z);
  double sum = 0;
  for (const double value : z) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

/// logits[i, :] / temperature + shift.
std::vector<double> row_of(const Floats& logits, std::int64_t i, std::int64_t prototypes, double temperature,
                           const Floats& shift) {
  std::vector<double> z;
  for (std::int64_t k = 0; k < prototypes; ++k) z.push_back(logits[i * prototypes + k] / temperature + shift[k]);
  return z;
}

/// Sizes around a vector, a block and several blocks; logits that leave the range of exponentials.
struct Shape {
  std::int64_t rows, prototypes;
  double scale;
};
constexpr Shape kShapes[] = {{1, 1, 1}, {3, 7, 1}, {5, 2048, 1}, {2, 2049, 1}, {40, 333, 1}, {7, 5001, 300}};

ALLOSAUR_KERNEL_TEST("rows of targets are softmaxes, written or added with a weight") {
  for (const auto& [rows, prototypes, scale] : kShapes) {
    const Floats logits(rows * prototypes, scale), shift(prototypes, scale);
    Floats output(rows * prototypes);
    std::vector<double> expected(output.begin(), output.end()), fresh(expected.size());
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::vector<double> z = row_of(logits, i, prototypes, 0.07, shift);
      const double normaliser = log_sum_exp(z);
      for (std::size_t k = 0; k < z.size(); ++k) {
        const std::size_t at = static_cast<std::size_t>(i) * z.size() + k;
        fresh[at] = 0.3 * std::exp(z[k] - normaliser);
        expected[at] += fresh[at];
      }
    }
    kernels::TargetRows k{.rows = rows,
                          .prototypes = prototypes,
                          .logits = logits.data(),
                          .shift = shift.data(),
                          .temperature = 0.07,
                          .weight = 0.3,
                          .accumulate = true,
                          .output = output.data()};
    const double tolerance = 2e-6 * std::max(1.0, scale);  // z itself is rounded to float32
    run(k);
    CHECK(relative_error(output, expected, 1) < tolerance);
    k.accumulate = false;
    run(k);
    CHECK(relative_error(output, fresh) < 3 * tolerance);
  }
}

ALLOSAUR_KERNEL_TEST("teacher logits may be kept in half precision") {
  const std::int64_t rows = 3, prototypes = 2500;
  const Floats logits(rows * prototypes), shift(prototypes);
  for (const auto type : {kernels::Type::bf16, kernels::Type::f16}) {
    testing::Array<std::uint16_t> stored;
    Floats rounded = logits, ours(rows * prototypes), theirs(rows * prototypes);
    for (float& value : rounded) {
      const bool half = type == kernels::Type::f16;
      stored.push_back(half ? kernels::cpu::to_f16(value) : kernels::cpu::to_bf16(value));
      value = half ? kernels::cpu::from_f16(stored.back()) : kernels::cpu::from_bf16(stored.back());
    }
    kernels::TargetRows k{.rows = rows,
                          .prototypes = prototypes,
                          .logits = stored.data(),
                          .type = type,
                          .shift = shift.data(),
                          .temperature = 0.1,
                          .output = ours.data()};
    run(k);
    k.logits = rounded.data();
    k.type = kernels::Type::f32;
    k.output = theirs.data();
    run(k);
    CHECK(std::equal(ours.begin(), ours.end(), theirs.begin()));
  }
}

ALLOSAUR_KERNEL_TEST("log-sum-exps over rows and over columns") {
  for (const auto& [rows, prototypes, scale] : kShapes) {
    const Floats logits(rows * prototypes, scale), of_prototype(prototypes, scale), of_row(rows, scale);
    Floats by_row(rows), by_column(prototypes);
    std::vector<double> rows_expected, columns_expected;
    for (std::int64_t i = 0; i < rows; ++i)
      rows_expected.push_back(log_sum_exp(row_of(logits, i, prototypes, 0.05, of_prototype)));
    for (std::int64_t k = 0; k < prototypes; ++k) {
      std::vector<double> z;
      for (std::int64_t i = 0; i < rows; ++i) z.push_back(logits[i * prototypes + k] / 0.05 + of_row[i]);
      columns_expected.push_back(log_sum_exp(z));
    }
    run(kernels::RowLogSumExp{.rows = rows,
                              .prototypes = prototypes,
                              .logits = logits.data(),
                              .shift = of_prototype.data(),
                              .temperature = 0.05,
                              .output = by_row.data()});
    run(kernels::ColumnLogSumExp{.rows = rows,
                                 .prototypes = prototypes,
                                 .logits = logits.data(),
                                 .shift = of_row.data(),
                                 .temperature = 0.05,
                                 .output = by_column.data()});
    CHECK(relative_error(by_row, rows_expected) < 1e-6);
    CHECK(relative_error(by_column, columns_expected) < 1e-6);
  }
  Floats empty(3);
  run(kernels::ColumnLogSumExp{.prototypes = 3, .output = empty.data()});
  for (const float value : empty) CHECK(value == -std::numeric_limits<float>::infinity());
}

ALLOSAUR_KERNEL_TEST("cross-entropy rows give the loss and turn scores into its gradient") {
  for (const auto& [rows, prototypes, scale] : kShapes) {
    const Floats scores(rows * prototypes, scale), of_prototype(prototypes), row_weight(rows);
    Floats target(rows * prototypes), gradient = scores, loss(rows);
    std::vector<double> expected_loss, expected_gradient;
    constexpr double kMass = 1.5, kTemperature = 0.1;
    for (std::int64_t i = 0; i < rows; ++i) {
      double mass = 0;
      for (std::int64_t k = 0; k < prototypes; ++k) mass += std::abs(target[i * prototypes + k]);
      std::vector<double> z;
      for (std::int64_t k = 0; k < prototypes; ++k) {
        float& t = target[i * prototypes + k];
        t = static_cast<float>(std::abs(t) * kMass / mass);
        z.push_back(scores[i * prototypes + k] * of_prototype[k] / kTemperature);
      }
      const double normaliser = log_sum_exp(z);
      double dot = 0;
      for (std::size_t k = 0; k < z.size(); ++k) {
        const double t = target[i * prototypes + static_cast<std::int64_t>(k)];
        dot += t * z[k];
        expected_gradient.push_back(of_prototype[static_cast<std::int64_t>(k)] * row_weight[i] / kTemperature *
                                    (kMass * std::exp(z[k] - normaliser) - t));
      }
      expected_loss.push_back(row_weight[i] * (kMass * normaliser - dot));
    }
    run(kernels::CrossEntropyRows{.rows = rows,
                                  .prototypes = prototypes,
                                  .scores = gradient.data(),
                                  .scale = of_prototype.data(),
                                  .target = target.data(),
                                  .row_weight = row_weight.data(),
                                  .mass = kMass,
                                  .temperature = kTemperature,
                                  .loss = loss.data()});
    CHECK(relative_error(loss, expected_loss, 1) < 1e-5);
    CHECK(relative_error(gradient, expected_gradient, 1) < 5e-6 * std::max(1.0, scale));
  }
}

ALLOSAUR_KERNEL_TEST("log-sum-exps of numbers in half precision are those of the same numbers in float32") {
  const std::int64_t rows = 5, prototypes = 300;
  const Floats of_prototype(prototypes), of_row(rows);
  for (const kernels::Type type : testing::kTypes) {
    const testing::Numbers stored(type, rows * prototypes);
    Floats logits(rows * prototypes);
    for (std::int64_t i = 0; i < stored.size(); ++i) logits[i] = stored[i];
    const auto by_row_and_column = [&](const void* numbers, kernels::Type stored_type) {
      Floats sums(rows + prototypes);
      run(kernels::RowLogSumExp{.rows = rows,
                                .prototypes = prototypes,
                                .logits = numbers,
                                .type = stored_type,
                                .shift = of_prototype.data(),
                                .output = sums.data()});
      run(kernels::ColumnLogSumExp{.rows = rows,
                                   .prototypes = prototypes,
                                   .logits = numbers,
                                   .type = stored_type,
                                   .shift = of_row.data(),
                                   .output = sums.data() + rows});
      return sums;
    };
    const Floats ours = by_row_and_column(stored.data(), type),
                 theirs = by_row_and_column(logits.data(), kernels::Type::f32);
    CHECK(std::equal(ours.begin(), ours.end(), theirs.begin()));
  }
}

}  // namespace
}  // namespace allosaur
