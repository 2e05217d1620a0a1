#include "evaluation/metrics.hpp"

#include <span>

#include <ATen/ATen.h>

namespace allosaur::evaluation {

at::Tensor label_ranks(const at::Tensor& scores, const at::Tensor& labels) {
  const at::Tensor own = scores.gather(1, labels.unsqueeze(1));  // [n, 1]
  const at::Tensor lower = at::arange(scores.size(1), at::kLong).unsqueeze(0).lt(labels.unsqueeze(1));
  // Written with a negation so that a NaN on either side counts against the classifier.
  return scores.le(own).logical_not().logical_or(scores.eq(own).logical_and(lower)).sum(1);
}

void HitCounts::add(const at::Tensor& scores, const at::Tensor& labels) {
  const at::Tensor ranks = label_ranks(scores, labels), classes = labels.contiguous();
  const std::int64_t* rank = ranks.const_data_ptr<std::int64_t>();
  const std::int64_t* label = classes.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < classes.numel(); ++i) {
    std::int64_t* count = &counts_.at(static_cast<std::size_t>(3 * label[i]));
    count[0] += 1;
    count[1] += rank[i] < 1;
    count[2] += rank[i] < 5;
  }
}

Accuracy HitCounts::reduce(comm::Communicator& group) const {
  std::vector<std::int64_t> counts = counts_;
  group.all_reduce(std::span(counts), comm::ReduceOp::sum);
  double samples = 0, top1 = 0, top5 = 0, classes = 0, recall = 0;
  for (std::size_t i = 0; i < counts.size(); i += 3) {
    if (counts[i] == 0) continue;
    samples += static_cast<double>(counts[i]);
    top1 += static_cast<double>(counts[i + 1]);
    top5 += static_cast<double>(counts[i + 2]);
    recall += static_cast<double>(counts[i + 1]) / static_cast<double>(counts[i]);
    classes += 1;
  }
  if (classes == 0) return {};
  return {.top1 = top1 / samples, .top5 = top5 / samples, .mean_per_class = recall / classes};
}

}  // namespace allosaur::evaluation
