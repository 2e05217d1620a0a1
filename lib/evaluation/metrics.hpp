#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::evaluation {

/// Fractions in [0, 1].
struct Accuracy {
  double top1 = 0, top5 = 0;
  double mean_per_class = 0;  ///< top-1 averaged over the classes that occur
};

/// How many classes a classifier puts before the right one. `scores` f32 [n, C], `labels` i64 [n] in [0, C); returns
/// i64 [n], 0 = right. Equal scores go to the lower class; a score that is not finite is never right.
at::Tensor label_ranks(const at::Tensor& scores, const at::Tensor& labels);

/// Right answers of one classifier by class, summed over batches and then over ranks.
class HitCounts {
 public:
  explicit HitCounts(std::int64_t classes) : counts_(static_cast<std::size_t>(3 * classes)) {}
  /// `scores` f32 [n, C], `labels` i64 [n] in [0, C).
  void add(const at::Tensor& scores, const at::Tensor& labels);
  /// Collective. Of all samples added on any rank (none: all zero).
  Accuracy reduce(comm::Communicator& group) const;

 private:
  std::vector<std::int64_t> counts_;  // for each class: samples, right at top 1, right at top 5
};

}  // namespace allosaur::evaluation
