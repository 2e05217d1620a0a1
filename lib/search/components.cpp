#include "search/components.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "search/rows.hpp"

namespace allosaur::search {
namespace {

/// Larger end first; without loops and repetitions; ascending, so that a row's smallest neighbour comes first.
void tidy(std::vector<Edge>& edges) {
  for (Edge& edge : edges) {
    if (edge.a < edge.b) std::swap(edge.a, edge.b);
  }
  std::erase_if(edges, [](const Edge& edge) { return edge.a == edge.b; });
  const auto key = [](const Edge& edge) { return std::pair(edge.a, edge.b); };
  std::sort(edges.begin(), edges.end(), [&](const Edge& x, const Edge& y) { return key(x) < key(y); });
  edges.erase(std::unique(edges.begin(), edges.end(), [&](const Edge& x, const Edge& y) { return key(x) == key(y); }),
              edges.end());
}

struct Hook {
  std::int64_t row, parent;
};

/// Every row that has smaller neighbours takes the smallest for parent.
void hook(const RowMap& map, const std::vector<Edge>& edges, std::vector<std::int64_t>& parents) {
  std::vector<Hook> hooks;
  for (const Edge& edge : edges) {
    if (hooks.empty() || hooks.back().row != edge.a) hooks.push_back({edge.a, edge.b});
  }
  for (const Hook& found : map.deliver(std::move(hooks))) {
    std::int64_t& parent = parents[static_cast<std::size_t>(found.row - map.first())];
    parent = std::min(parent, found.parent);
  }
}

/// Points every row at the root of its tree.
void flatten(comm::Communicator& group, const RowMap& map, std::vector<std::int64_t>& parents) {
  std::vector<std::size_t> open;  // rows that are not roots
  for (std::size_t i = 0; i < parents.size(); ++i) {
    if (parents[i] != map.first() + static_cast<std::int64_t>(i)) open.push_back(i);
  }
  for (bool moved = true; moved;) {
    std::vector<std::int64_t> asked(open.size());
    for (std::size_t i = 0; i < open.size(); ++i) asked[i] = parents[open[i]];
    const std::vector<std::int64_t> grandparents = map.fetch(parents, asked);
    for (std::size_t i = 0; i < open.size(); ++i) parents[open[i]] = grandparents[i];
    moved = group.max(grandparents != asked) != 0;
  }
}

/// Replaces both ends of every edge by their roots.
void contract(const RowMap& map, const std::vector<std::int64_t>& parents, std::vector<Edge>& edges) {
  std::vector<std::int64_t> ends;
  for (const Edge& edge : edges) ends.insert(ends.end(), {edge.a, edge.b});
  const std::vector<std::int64_t> roots = map.fetch(parents, ends);
  for (std::size_t i = 0; i < edges.size(); ++i) edges[i] = {roots[2 * i], roots[2 * i + 1]};
  tidy(edges);
}

}  // namespace

std::vector<std::int64_t> connected_components(comm::Communicator& group, std::vector<Edge> edges, std::int64_t rows) {
  const RowMap map(group, rows);
  std::vector<std::int64_t> parents(static_cast<std::size_t>(rows));
  std::iota(parents.begin(), parents.end(), map.first());
  tidy(edges);
  while (group.max(!edges.empty()) != 0) {
    hook(map, edges, parents);
    flatten(group, map, parents);
    contract(map, parents, edges);
  }
  return parents;
}

}  // namespace allosaur::search
