#include "curation/retrieve.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "search/rows.hpp"
#include "search/top_k.hpp"

namespace allosaur::curation {
namespace {

/// Tells pool row `row` that it is neighbour number `order` (0 = nearest) of a query.
struct Hit {
  std::int64_t row, order, query;
  float similarity;
};

/// Of a pool row: the smallest k that retrieves it, and the query it is most similar to.
struct Best {
  std::int64_t order = std::numeric_limits<std::int64_t>::max(), query = -1;
  float similarity = -std::numeric_limits<float>::infinity();
};

std::vector<Best> search_pool(comm::Communicator& group, const search::RowMap& map, const at::Tensor& queries,
                              std::span<const std::int64_t> query_ids, const at::Tensor& pool, std::int64_t k,
                              const std::function<void()>& after_block) {
  const search::Neighbours found = search::exact_top_k(group, queries, pool, k, after_block);
  const auto* index = found.index.const_data_ptr<std::int64_t>();
  const auto* similarity = found.similarity.const_data_ptr<float>();
  std::vector<Hit> hits;
  for (std::int64_t i = 0; i < queries.size(0) * k; ++i) {
    if (index[i] >= 0) hits.push_back({index[i], i % k, query_ids[static_cast<std::size_t>(i / k)], similarity[i]});
  }
  std::vector<Best> best(static_cast<std::size_t>(map.rows()));
  for (const Hit& hit : map.deliver(std::move(hits))) {
    Best& row = best[static_cast<std::size_t>(hit.row - map.first())];
    row.order = std::min(row.order, hit.order);
    if (std::tuple(-hit.similarity, hit.query) < std::tuple(-row.similarity, row.query)) {
      row.similarity = hit.similarity;
      row.query = hit.query;
    }
  }
  return best;
}

/// Collective. The whole pool, each image with the query it is most similar to.
Retrieval take_all(comm::Communicator& group, const search::RowMap& map, const at::Tensor& queries,
                   std::span<const std::int64_t> query_ids, const at::Tensor& pool,
                   const std::function<void()>& after_block) {
  const search::Neighbours found = search::exact_top_k(group, pool, queries, 1, after_block);
  const auto* index = found.index.const_data_ptr<std::int64_t>();
  const search::RowMap query_map(group, queries.size(0));
  const std::vector<std::int64_t> nearest = query_map.fetch(std::vector(query_ids.begin(), query_ids.end()),
                                                            std::span(index, static_cast<std::size_t>(pool.size(0))));
  Retrieval result{.images = {}, .total = map.total(), .k = map.total()};
  for (std::int64_t place = 0; place < pool.size(0); ++place) {
    result.images.push_back(
        {place, nearest[static_cast<std::size_t>(place)], found.similarity.const_data_ptr<float>()[place]});
  }
  return result;
}

/// Collective. For each k from 1 to `largest_k`, how many pool images the k nearest of all queries make together.
std::vector<std::int64_t> union_sizes(comm::Communicator& group, const std::vector<Best>& best,
                                      std::int64_t largest_k) {
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(largest_k), 0);
  for (const Best& row : best) {
    if (row.order < largest_k) ++sizes[static_cast<std::size_t>(row.order)];
  }
  group.all_reduce(std::span(sizes), comm::ReduceOp::sum);
  for (std::size_t k = 1; k < sizes.size(); ++k) sizes[k] += sizes[k - 1];
  return sizes;
}

}  // namespace

Retrieval retrieve(comm::Communicator& group, const at::Tensor& queries, std::span<const std::int64_t> query_ids,
                   const at::Tensor& pool, const RetrievalConfig& config, const std::function<void()>& after_block) {
  const search::RowMap map(group, pool.size(0));
  if (config.target >= map.total()) return take_all(group, map, queries, query_ids, pool, after_block);
  Retrieval result;
  std::vector<Best> best;
  for (std::int64_t k = config.k;; k = std::min(2 * k, map.total())) {
    best = search_pool(group, map, queries, query_ids, pool, k, after_block);
    const std::vector<std::int64_t> sizes = union_sizes(group, best, k);
    if (sizes.back() < config.target && k < map.total()) continue;
    // The smallest k that reaches the target, but never less than was asked for.
    const auto enough = std::lower_bound(sizes.begin() + (config.k - 1), sizes.end() - 1, config.target);
    result.k = enough - sizes.begin() + 1;
    result.total = *enough;
    break;
  }
  for (std::size_t place = 0; place < best.size(); ++place) {
    if (best[place].order >= result.k) continue;
    result.images.push_back({static_cast<std::int64_t>(place), best[place].query, best[place].similarity});
  }
  return result;
}

}  // namespace allosaur::curation
