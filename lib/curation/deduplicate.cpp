#include "curation/deduplicate.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "search/components.hpp"
#include "search/rows.hpp"
#include "search/top_k.hpp"

namespace allosaur::curation {
namespace {

using search::RowMap;

/// Two rows, the smaller first; goes to the rank of the smaller.
struct Pair {
  std::int64_t row, other;
  float similarity;
};

/// Collective. All pairs of which one is among the k nearest of the other and more similar than `threshold`, with their
/// largest similarity, each once, on the rank of the smaller row.
std::vector<Pair> similar_pairs(comm::Communicator& group, const RowMap& map, const at::Tensor& views, std::int64_t k,
                                double threshold, const std::function<void()>& after_block) {
  k = std::min(k, map.total() - 1);
  const at::Tensor whole = views.select(1, 0).contiguous();
  std::vector<Pair> pairs;
  for (std::int64_t view = 0; view < views.size(1); ++view) {
    // An image is its own neighbour in the view 0 always, in others mostly: one more is asked for.
    const search::Neighbours found = search::exact_top_k(group, views.select(1, view), whole, k + 1, after_block);
    const auto* similarity = found.similarity.const_data_ptr<float>();
    const auto* index = found.index.const_data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < map.rows() * (k + 1); ++i) {
      const std::int64_t row = map.first() + i / (k + 1);
      if (index[i] < 0 || index[i] == row || !(similarity[i] > threshold)) continue;
      pairs.push_back({std::min(row, index[i]), std::max(row, index[i]), similarity[i]});
    }
  }
  pairs = map.deliver(std::move(pairs));
  std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
    return std::tuple(a.row, a.other, -a.similarity) < std::tuple(b.row, b.other, -b.similarity);
  });
  const auto same = [](const Pair& a, const Pair& b) { return a.row == b.row && a.other == b.other; };
  pairs.erase(std::unique(pairs.begin(), pairs.end(), same), pairs.end());
  return pairs;
}

/// A row's claim to represent the component whose first row is `row`.
struct Claim {
  std::int64_t row, pixels, candidate;
};

/// What the first row of a component knows of it.
struct Component {
  std::int64_t size = 0, representative = -1;
};

/// Collective. For each of this rank's usable pool rows the row that represents its component, else -1; fills
/// `result.components`.
std::vector<std::int64_t> choose_representatives(comm::Communicator& group, const RowMap& map,
                                                 const std::vector<std::int64_t>& labels, const std::int64_t* pixels,
                                                 std::int64_t pool, Deduplication& result) {
  std::vector<Claim> claims;
  std::vector<std::int64_t> places;
  for (std::int64_t i = 0; i < map.rows() && map.first() + i < pool; ++i) {
    if (pixels[i] == 0) continue;
    claims.push_back({labels[static_cast<std::size_t>(i)], pixels[i], map.first() + i});
    places.push_back(i);
  }
  std::vector<std::int64_t> asked(claims.size());
  for (std::size_t c = 0; c < claims.size(); ++c) asked[c] = claims[c].row;

  std::vector<Component> components(static_cast<std::size_t>(map.rows()));
  std::vector<std::int64_t> most_pixels(components.size(), 0);
  for (const Claim& claim : map.deliver(std::move(claims))) {
    const auto place = static_cast<std::size_t>(claim.row - map.first());
    Component& component = components[place];
    ++component.size;
    if (std::pair(-claim.pixels, claim.candidate) < std::pair(-most_pixels[place], component.representative)) {
      most_pixels[place] = claim.pixels;
      component.representative = claim.candidate;
    }
  }
  std::map<std::int64_t, std::int64_t> sizes;
  for (const Component& component : components) {
    if (component.size > 0) ++sizes[component.size];
  }
  std::vector<std::int64_t> flat;
  for (const auto& [size, count] : sizes) flat.insert(flat.end(), {size, count});
  const std::vector<std::int64_t> lengths = group.gather_all(static_cast<std::int64_t>(flat.size()));
  std::int64_t total = 0;
  for (const std::int64_t length : lengths) total += length;
  std::vector<std::int64_t> all(static_cast<std::size_t>(total));
  group.all_gather_counts(std::span(flat), std::span(all), lengths);
  for (std::size_t i = 0; i < all.size(); i += 2) result.components[all[i]] += all[i + 1];

  std::vector<std::int64_t> representatives(static_cast<std::size_t>(map.rows()), -1);
  const std::vector<Component> answers = map.fetch(components, asked);
  for (std::size_t c = 0; c < places.size(); ++c) {
    representatives[static_cast<std::size_t>(places[c])] = answers[c].representative;
  }
  return representatives;
}

/// Tells the component `row` that it holds the reference image `reference`.
struct Mark {
  std::int64_t row, reference;
};

/// Collective. For each of this rank's rows the first reference row in its component, or -1.
std::vector<std::int64_t> find_references(const RowMap& map, const std::vector<std::int64_t>& labels,
                                          std::int64_t pool) {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::vector<Mark> marks;
  for (std::int64_t i = std::max<std::int64_t>(0, pool - map.first()); i < map.rows(); ++i) {
    marks.push_back({labels[static_cast<std::size_t>(i)], map.first() + i});
  }
  std::vector<std::int64_t> first(static_cast<std::size_t>(map.rows()), kNone);
  for (const Mark& mark : map.deliver(std::move(marks))) {
    std::int64_t& known = first[static_cast<std::size_t>(mark.row - map.first())];
    known = std::min(known, mark.reference);
  }
  std::vector<std::int64_t> references = map.fetch(first, labels);
  std::replace(references.begin(), references.end(), kNone, std::int64_t{-1});
  return references;
}

}  // namespace

Deduplication deduplicate(comm::Communicator& group, const at::Tensor& views, const at::Tensor& pixels,
                          std::int64_t pool, const DeduplicationConfig& config,
                          const std::function<void()>& after_block) {
  if (!(config.reference_threshold > 0) || config.reference_threshold > config.duplicate_threshold) {
    throw std::logic_error("deduplicate: needs 0 < reference_threshold <= duplicate_threshold");
  }
  const RowMap map(group, views.size(0));
  const std::vector<Pair> pairs = similar_pairs(group, map, views, config.k, config.reference_threshold, after_block);

  Deduplication result;
  std::vector<search::Edge> duplicates, any;
  double least = std::numeric_limits<double>::infinity(), sum = 0;
  for (const Pair& pair : pairs) {
    if (pair.row >= pool) continue;  // two references
    any.push_back({pair.row, pair.other});
    if (pair.other >= pool || !(pair.similarity > config.duplicate_threshold)) continue;
    duplicates.push_back({pair.row, pair.other});
    least = std::min(least, static_cast<double>(pair.similarity));
    sum += pair.similarity;
  }
  result.edges = group.sum(static_cast<std::int64_t>(duplicates.size()));
  if (result.edges > 0) {
    group.all_reduce(std::span(&least, 1), comm::ReduceOp::min);
    result.least_similarity = least;
    result.mean_similarity = group.sum(sum) / static_cast<double>(result.edges);
  }

  const auto* pixel_counts = pixels.const_data_ptr<std::int64_t>();
  const std::vector<std::int64_t> representatives = choose_representatives(
      group, map, search::connected_components(group, std::move(duplicates), map.rows()), pixel_counts, pool, result);
  std::vector<std::int64_t> references(static_cast<std::size_t>(map.rows()), -1);
  if (map.total() > pool) {
    references = find_references(map, search::connected_components(group, std::move(any), map.rows()), pool);
  }

  std::array<std::int64_t, 4> counts{};
  result.fates.assign(static_cast<std::size_t>(map.rows()), Fate::kept);
  result.cause.assign(static_cast<std::size_t>(map.rows()), -1);
  for (std::size_t i = 0; i < result.fates.size(); ++i) {
    const std::int64_t row = map.first() + static_cast<std::int64_t>(i);
    Fate& fate = result.fates[i];
    if (pixel_counts[i] == 0) {
      fate = Fate::rejected;
    } else if (row < pool && representatives[i] != row) {
      fate = Fate::duplicate;
      result.cause[i] = representatives[i];
    } else if (row < pool && references[i] >= 0) {
      fate = Fate::reference_copy;
      result.cause[i] = references[i];
    }
    if (row < pool) ++counts[static_cast<std::size_t>(fate)];
  }
  group.all_reduce(std::span(counts), comm::ReduceOp::sum);
  result.rejected = counts[static_cast<std::size_t>(Fate::rejected)];
  result.duplicates = counts[static_cast<std::size_t>(Fate::duplicate)];
  result.reference_copies = counts[static_cast<std::size_t>(Fate::reference_copy)];
  return result;
}

at::Tensor nearest_in_pool(comm::Communicator& group, const at::Tensor& views, std::int64_t pool,
                           std::span<const std::int64_t> mine, const std::function<void()>& after_block) {
  const std::int64_t first = group.exclusive_scan(views.size(0));
  const std::int64_t in_pool = std::clamp<std::int64_t>(pool - first, 0, views.size(0));
  const at::Tensor whole = views.select(1, 0).narrow(0, 0, in_pool).contiguous();
  const auto n = static_cast<std::int64_t>(mine.size());
  const at::Tensor places = at::tensor(at::IntArrayRef(mine.data(), mine.size()), at::kLong);
  const at::Tensor queries = views.index_select(0, places).view({n * views.size(1), views.size(2)});
  const search::Neighbours found = search::exact_top_k(group, queries, whole, 2, after_block);
  const std::array<std::int64_t, 2> shape{n, 2 * views.size(1)};
  const at::Tensor is_self = found.index.view(shape) == (places + first).unsqueeze(1);
  return found.similarity.view(shape).masked_fill(is_self, -std::numeric_limits<float>::infinity()).amax(1);
}

}  // namespace allosaur::curation
