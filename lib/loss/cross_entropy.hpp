#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "loss/targets.hpp"
#include "model/head.hpp"

namespace allosaur::loss {

/// C crops of n rows of the student, against targets of G crops of the teacher: the sum over crops c and g of
/// pairs[c][g] * sum_i row_weight[i] * CE(target(g, i), student(c, i)), with
/// CE(t, s) = -sum_k t_k log softmax(s / student_temperature)_k (dinov2/loss/dino_clstoken_loss.py).
struct Comparison {
  Targets teacher;        // logits [G * n, K], crop-major: row g * n + i
  at::Tensor pairs;       // f32 [C, G], on the CPU
  at::Tensor row_weight;  // f32 [n]
  double weight = 1;      // in the total
};

/// What prototype_cross_entropy() gives.
struct CrossEntropy {
  at::Tensor total;  // f32 []
  std::vector<at::Tensor>
      per_crop;  // f32 [C] of each comparison: its parts by student crop, without its weight; detached
};

struct CrossEntropyConfig {
  double student_temperature = 0.1;
  double scale = 1;   ///< of the total: what else its gradient would be multiplied by, such as a loss scale
  bool fast = false;  ///< see model::Products, for the three products with the prototypes
};

/// The weighted sum of comparisons that share prototypes. The student's scores are formed, consumed and turned into
/// gradients chunk by chunk: prototype product, log-softmax, cross-entropy and the gradients of embeddings and
/// prototypes in one pass; nothing of size rows x K is kept, nor effective prototypes: their norms scale the scores.
///   student     [rows, b]   embeddings from the head: those of each comparison in turn, crop-major; 16 bits are
///   widened prototypes  leaves, or values without gradients
/// The gradients of prototypes are added to their .grad() here, while the scores are at hand (without copy where that
/// is float32); it holds nothing but what earlier calls added. Backward, once and with a gradient of one, delivers
/// those of the embeddings, and runs the hooks of the leaves.
CrossEntropy prototype_cross_entropy(const at::Tensor& student, const model::Prototypes& prototypes,
                                     const std::vector<Comparison>& comparisons, const CrossEntropyConfig& config = {});

/// How the teacher uses its prototypes, to see a collapse coming.
struct TargetStatistics {
  double entropy;   ///< mean entropy of a row's target, nats: ln K = uniform, 0 = one prototype
  double marginal;  ///< entropy of the mean target: near ln K when all prototypes are used, 0 = all rows on one
};
TargetStatistics target_statistics(const Targets& targets);

}  // namespace allosaur::loss
