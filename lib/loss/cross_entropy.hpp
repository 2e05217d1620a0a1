#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "loss/targets.hpp"

namespace allosaur::loss {

/// C crops of n rows of the student, against targets of G crops of the teacher: the sum over crops c and g of
/// pairs[c][g] * sum_i row_weight[i] * CE(target(g, i), student(c, i)), with
/// CE(t, s) = -sum_k t_k log softmax(s / student_temperature)_k (facts 2.3).
struct Comparison {
  Targets teacher;        // logits [G * n, K], crop-major: row g * n + i
  at::Tensor pairs;       // f32 [C, G], on the CPU
  at::Tensor row_weight;  // f32 [n]
  double weight = 1;      // in the total
};

/// What prototype_cross_entropy() gives.
struct CrossEntropy {
  at::Tensor total;  // f32 [], differentiable in the student's embeddings and prototypes
  std::vector<at::Tensor>
      per_crop;  // f32 [C] of each comparison: its parts by student crop, without its weight; detached
};

/// The weighted sum of comparisons that share prototypes. The student's scores are formed, consumed and turned into
/// gradients chunk by chunk: prototype product, log-softmax, cross-entropy and the gradients of embeddings and
/// prototypes in one pass; nothing of size rows x K is kept.
///   student     f32 [rows, b]   embeddings from the head: those of each comparison in turn, crop-major
///   prototypes  f32 [K, b]      effective prototypes
///   fast        see model::Products, for the three products with the prototypes
/// 16-bit embeddings are widened to float32. One backward pass only.
CrossEntropy prototype_cross_entropy(const at::Tensor& student, const at::Tensor& prototypes,
                                     const std::vector<Comparison>& comparisons, double student_temperature = 0.1,
                                     bool fast = false);

/// How the teacher uses its prototypes, to see a collapse coming.
struct TargetStatistics {
  double entropy;   ///< mean entropy of a row's target, nats: ln K = uniform, 0 = one prototype
  double marginal;  ///< entropy of the mean target: near ln K when all prototypes are used, 0 = all rows on one
};
TargetStatistics target_statistics(const Targets& targets);

}  // namespace allosaur::loss
