#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "loss/targets.hpp"

namespace allosaur::loss {

/// What prototype_cross_entropy() gives.
struct CrossEntropy {
  at::Tensor total;     // f32 [], differentiable in the student's embeddings and prototypes
  at::Tensor per_crop;  // f32 [C], the parts of the total, by student crop (detached)
};

/// Sum over student crops c and teacher crops g of pairs[c][g] * sum_i row_weight[i] * CE(target(g, i), student(c, i)),
/// with CE(t, s) = -sum_k t_k log softmax(s / student_temperature)_k (facts 2.3). The student's scores are formed,
/// consumed and turned into gradients chunk by chunk: prototype product, log-softmax, cross-entropy and the gradients
/// of embeddings and prototypes in one pass; nothing of size rows x K is kept.
///   student     f32 [C, n, b]   embeddings from the head
///   prototypes  f32 [K, b]      effective prototypes
///   teacher     logits [G * n, K], crop-major: row g * n + i
///   pairs       f32 [C, G] on the CPU; row_weight f32 [n]
///   fast        see model::Products, for the three products with the prototypes
/// 16-bit embeddings and prototypes are widened to float32. One backward pass only.
CrossEntropy prototype_cross_entropy(const at::Tensor& student, const at::Tensor& prototypes, const Targets& teacher,
                                     const at::Tensor& pairs, const at::Tensor& row_weight,
                                     double student_temperature = 0.1, bool fast = false);

/// How the teacher uses its prototypes, to see a collapse coming.
struct TargetStatistics {
  double entropy;   ///< mean entropy of a row's target, nats: ln K = uniform, 0 = one prototype
  double marginal;  ///< entropy of the mean target: near ln K when all prototypes are used, 0 = all rows on one
};
TargetStatistics target_statistics(const Targets& targets);

}  // namespace allosaur::loss
