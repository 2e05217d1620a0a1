// Softmaxes over rows of K prototypes in two passes over memory: a row is cut into blocks that fit the first-level
// cache; each block's exponentials are relative to the block's own maximum, and the second pass multiplies them by
// exp(block's maximum - row's maximum) / sum. One exponential an element.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/backends.hpp"
#include "kernels/convert.hpp"
#include "kernels/parallel.hpp"
#include "kernels/vector_math.hpp"

namespace allosaur::kernels::cpu {

namespace {

constexpr std::int64_t kBlock = 2048;
constexpr std::int64_t kTile = 16;  // rows that share one rescaling in a reduction over rows
constexpr float kLowest = std::numeric_limits<float>::lowest();

/// What a row's blocks say about its log-sum-exp.
struct Exponentials {
  float largest = kLowest;
  float sum = 0;  // of exp(z - largest)
};

struct Blocks {
  explicit Blocks(std::int64_t n) : parts(static_cast<std::size_t>((n + kBlock - 1) / kBlock)) {}
  Exponentials& at(std::int64_t first) { return parts[static_cast<std::size_t>(first / kBlock)]; }
  /// log of the sum of all exponentials.
  double log_sum_exp() const {
    float largest = kLowest;
    for (const Exponentials& part : parts) largest = std::max(largest, part.largest);
    double sum = 0;
    for (const Exponentials& part : parts) sum += part.sum * std::exp(static_cast<double>(part.largest) - largest);
    return largest + std::log(sum);
  }
  std::vector<Exponentials> parts;
};

/// z = x * scale + shift, then exp(z - max z).
ALLOSAUR_VECTORISED Exponentials shifted_exponentials(std::int64_t n, const float* __restrict x, float scale,
                                                      const float* __restrict shift, float* __restrict z) {
  float largest = kLowest, sum = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < n; ++i) {
    z[i] = x[i] * scale + shift[i];
    largest = largest < z[i] ? z[i] : largest;
  }
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    z[i] = exp(z[i] - largest);
    sum += z[i];
  }
  return {largest, sum};
}

struct ScoreSums {
  Exponentials exponentials;
  float dot;  // of target and scores
};

/// s becomes exp(factor * (z - max z)) of z = scale * s.
ALLOSAUR_VECTORISED ScoreSums score_exponentials(std::int64_t n, float* __restrict s, const float* __restrict scale,
                                                 float factor, const float* __restrict target) {
  float largest = kLowest, sum = 0, dot = 0;
#pragma omp simd reduction(max : largest)
  for (std::int64_t i = 0; i < n; ++i) {
    s[i] *= scale[i];
    largest = largest < s[i] ? s[i] : largest;
  }
#pragma omp simd reduction(+ : sum, dot)
  for (std::int64_t i = 0; i < n; ++i) {
    dot += target[i] * s[i];
    s[i] = exp(factor * (s[i] - largest));
    sum += s[i];
  }
  return {{largest * factor, sum}, dot};
}

ALLOSAUR_VECTORISED void scale_by(std::int64_t n, const float* __restrict x, float factor, float* __restrict output) {
  for (std::int64_t i = 0; i < n; ++i) output[i] = x[i] * factor;
}

ALLOSAUR_VECTORISED void add_scaled(std::int64_t n, const float* __restrict x, float factor, float* __restrict output) {
  for (std::int64_t i = 0; i < n; ++i) output[i] += x[i] * factor;
}

ALLOSAUR_VECTORISED void score_gradient(std::int64_t n, float* __restrict s, const float* __restrict scale,
                                        float factor, const float* __restrict target, float weight) {
  for (std::int64_t i = 0; i < n; ++i) s[i] = scale[i] * (s[i] * factor - weight * target[i]);
}

/// One more row of a running maximum over rows.
ALLOSAUR_VECTORISED void column_maximum(std::int64_t n, const float* __restrict x, float scale, float shift,
                                        float* __restrict largest) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float z = x[i] * scale + shift;
    largest[i] = largest[i] < z ? z : largest[i];
  }
}

ALLOSAUR_VECTORISED void rescale(std::int64_t n, float* __restrict sum, float* __restrict from,
                                 const float* __restrict to) {
  for (std::int64_t i = 0; i < n; ++i) {
    sum[i] *= exp(from[i] - to[i]);
    from[i] = to[i];
  }
}

/// One more row of a sum over rows, relative to the running maximum.
ALLOSAUR_VECTORISED void column_sum(std::int64_t n, const float* __restrict x, float scale, float shift,
                                    const float* __restrict largest, float* __restrict sum) {
  for (std::int64_t i = 0; i < n; ++i) sum[i] += exp(x[i] * scale + shift - largest[i]);
}

template <class Body>
void for_rows(std::int64_t rows, std::int64_t width, const Body& body) {
  for_pieces(rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, width)), body);
}

/// Calls body(first, count) for the blocks of a row.
template <class Body>
void for_blocks(std::int64_t n, const Body& body) {
  for (std::int64_t first = 0; first < n; first += kBlock) body(first, std::min(kBlock, n - first));
}

}  // namespace

void run(const TargetRows& k) {
  const auto scale = static_cast<float>(1 / k.temperature);
  for_rows(k.rows, k.prototypes, [&](std::int64_t begin, std::int64_t end) {
    Blocks blocks(k.prototypes);
    std::vector<float> converted(kBlock), row(static_cast<std::size_t>(k.accumulate ? k.prototypes : 0));
    for (std::int64_t i = begin; i < end; ++i) {
      float* output = k.output + i * k.prototypes;
      float* z = k.accumulate ? row.data() : output;
      for_blocks(k.prototypes, [&](std::int64_t first, std::int64_t n) {
        const float* x = load(i * k.prototypes + first, n, k.logits, k.type, converted.data());
        blocks.at(first) = shifted_exponentials(n, x, scale, k.shift + first, z + first);
      });
      const double normaliser = blocks.log_sum_exp();
      for_blocks(k.prototypes, [&](std::int64_t first, std::int64_t n) {
        const auto factor = static_cast<float>(k.weight * std::exp(blocks.at(first).largest - normaliser));
        (k.accumulate ? add_scaled : scale_by)(n, z + first, factor, output + first);
      });
    }
  });
}

void run(const CrossEntropyRows& k) {
  const auto inverse_temperature = static_cast<float>(1 / k.temperature);
  for_rows(k.rows, k.prototypes, [&](std::int64_t begin, std::int64_t end) {
    Blocks blocks(k.prototypes);
    for (std::int64_t i = begin; i < end; ++i) {
      float* scores = k.scores + i * k.prototypes;
      const float* target = k.target + i * k.prototypes;
      double dot = 0;
      for_blocks(k.prototypes, [&](std::int64_t first, std::int64_t n) {
        const ScoreSums sums =
            score_exponentials(n, scores + first, k.scale + first, inverse_temperature, target + first);
        blocks.at(first) = sums.exponentials;
        dot += sums.dot;
      });
      const double normaliser = blocks.log_sum_exp(), weight = k.row_weight[i] / k.temperature;
      k.loss[i] = static_cast<float>(k.row_weight[i] * (k.mass * normaliser - dot / k.temperature));
      for_blocks(k.prototypes, [&](std::int64_t first, std::int64_t n) {
        const double factor = weight * k.mass * std::exp(blocks.at(first).largest - normaliser);
        score_gradient(n, scores + first, k.scale + first, static_cast<float>(factor), target + first,
                       static_cast<float>(weight));
      });
    }
  });
}

void run(const RowLogSumExp& k) {
  const auto scale = static_cast<float>(1 / k.temperature);
  for_rows(k.rows, k.prototypes, [&](std::int64_t begin, std::int64_t end) {
    Blocks blocks(k.prototypes);
    std::vector<float> converted(kBlock), z(kBlock);
    for (std::int64_t i = begin; i < end; ++i) {
      for_blocks(k.prototypes, [&](std::int64_t first, std::int64_t n) {
        const float* x = load(i * k.prototypes + first, n, k.logits, k.type, converted.data());
        blocks.at(first) = shifted_exponentials(n, x, scale, k.shift + first, z.data());
      });
      k.output[i] = static_cast<float>(blocks.log_sum_exp());
    }
  });
}

void run(const ColumnLogSumExp& k) {
  const auto scale = static_cast<float>(1 / k.temperature);
  for_pieces(k.prototypes, kBlock, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t n = end - begin;
    std::vector<float> converted(kBlock * kTile), sum(kBlock), from(kBlock, kLowest), to(kBlock, kLowest);
    std::vector<const float*> x(kTile);
    for (std::int64_t first = 0; first < k.rows; first += kTile) {
      const std::int64_t rows = std::min(kTile, k.rows - first);
      for (std::int64_t i = 0; i < rows; ++i) {
        const float*& row = x[static_cast<std::size_t>(i)];
        row = load((first + i) * k.prototypes + begin, n, k.logits, k.type, converted.data() + i * kBlock);
        column_maximum(n, row, scale, k.shift[first + i], to.data());
      }
      rescale(n, sum.data(), from.data(), to.data());
      for (std::int64_t i = 0; i < rows; ++i)
        column_sum(n, x[static_cast<std::size_t>(i)], scale, k.shift[first + i], to.data(), sum.data());
    }
    for (std::int64_t i = 0; i < n; ++i)
      k.output[begin + i] = to[static_cast<std::size_t>(i)] + std::log(sum[static_cast<std::size_t>(i)]);
  });
}

}  // namespace allosaur::kernels::cpu
