#include "evaluation/knn.hpp"

#include <algorithm>
#include <set>

#include <ATen/ATen.h>

#include "search/top_k.hpp"

namespace allosaur::evaluation {
namespace {

at::Tensor unit_length(const Frozen& frozen) {
  const at::Tensor cls = frozen.cls.select(1, frozen.cls.size(1) - 1);
  return cls / cls.norm(2, -1, true).clamp_min(1e-12);
}

/// The labels of all ranks in rank order, as search numbers the bank.
at::Tensor gather_labels(comm::Communicator& group, const at::Tensor& labels) {
  const std::vector<std::int64_t> counts = group.gather_all(labels.numel());
  std::int64_t total = 0;
  for (const std::int64_t count : counts) total += count;
  const at::Tensor all = at::empty({total}, at::kLong);
  group.all_gather_counts(labels, all, counts);
  return all;
}

}  // namespace

const KnnResult::Score& KnnResult::best() const {
  return *std::max_element(scores.begin(), scores.end(),
                           [](const Score& a, const Score& b) { return a.accuracy.top1 < b.accuracy.top1; });
}

KnnResult knn(comm::Communicator& group, const Frozen& bank, const Frozen& queries, std::int64_t classes,
              const KnnConfig& config, const std::function<void()>& after_block) {
  const at::Tensor labels = gather_labels(group, bank.labels);
  std::set<std::int64_t> ks;
  for (const std::int64_t k : config.k) ks.insert(std::min(k, labels.numel()));
  const auto neighbours =
      search::exact_top_k(group, unit_length(queries), unit_length(bank), *ks.rbegin(), after_block);

  std::vector<HitCounts> hits(ks.size(), HitCounts(classes));
  constexpr std::int64_t kChunk = 1024;  // bounds the votes, [chunk, classes]
  for (std::int64_t row = 0; row < queries.labels.numel(); row += kChunk) {
    const std::int64_t count = std::min(kChunk, queries.labels.numel() - row);
    const at::Tensor weights = neighbours.similarity.narrow(0, row, count).div(config.temperature).softmax(1);
    const at::Tensor index = neighbours.index.narrow(0, row, count);
    const at::Tensor voters = labels.index_select(0, index.reshape({-1})).view_as(index);
    const at::Tensor votes = at::zeros({count, classes}, at::kFloat);
    std::int64_t counted = 0;
    auto hit = hits.begin();
    for (const std::int64_t k : ks) {
      votes.scatter_add_(1, voters.narrow(1, counted, k - counted), weights.narrow(1, counted, k - counted));
      (hit++)->add(votes, queries.labels.narrow(0, row, count));
      counted = k;
    }
    if (after_block) after_block();
  }

  KnnResult result;
  auto hit = hits.begin();
  for (const std::int64_t k : ks) result.scores.push_back({.k = k, .accuracy = (hit++)->reduce(group)});
  return result;
}

}  // namespace allosaur::evaluation
