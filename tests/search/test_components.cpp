#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "core/random.hpp"
#include "search/components.hpp"
#include "search/rows.hpp"
#include "slices.hpp"

namespace allosaur {
namespace {

using search::Edge;
using testing::world;

std::vector<std::int64_t> serial_components(const std::vector<Edge>& edges, std::int64_t total) {
  std::vector<std::int64_t> parent(static_cast<std::size_t>(total));
  std::iota(parent.begin(), parent.end(), 0);
  const std::function<std::int64_t(std::int64_t)> root = [&](std::int64_t row) {
    while (parent[static_cast<std::size_t>(row)] != row) row = parent[static_cast<std::size_t>(row)];
    return row;
  };
  for (const Edge& edge : edges) {
    const std::int64_t a = root(edge.a), b = root(edge.b);
    parent[static_cast<std::size_t>(std::max(a, b))] = std::min(a, b);
  }
  for (std::int64_t row = 0; row < total; ++row) parent[static_cast<std::size_t>(row)] = root(row);
  return parent;
}

/// The same `edges` on all ranks; each rank passes some of them, one rank none.
void check_components(const std::vector<Edge>& edges, std::int64_t total) {
  std::vector<Edge> mine;
  const std::int64_t holders = std::max(1, world().size() - 1);
  for (std::size_t e = 0; e < edges.size(); ++e) {
    if (static_cast<std::int64_t>(e) % holders == world().rank()) mine.push_back(edges[e]);
  }
  const auto [first, rows] = testing::uneven_slice(total);
  const std::vector<std::int64_t> found = search::connected_components(world(), mine, rows);
  const std::vector<std::int64_t> expected = serial_components(edges, total);
  const auto mine_expected = expected.begin() + first;
  CHECK(found == std::vector<std::int64_t>(mine_expected, mine_expected + rows));
}

TEST_CASE("connected components of random graphs, from sparse to dense") {
  for (const std::int64_t total : {1, 10, 500}) {
    for (const double degree : {0.0, 0.5, 1.0, 4.0}) {
      core::Random random(7, core::Purpose::subset, static_cast<std::uint64_t>(total));
      std::vector<Edge> edges(static_cast<std::size_t>(static_cast<double>(total) * degree));
      for (Edge& edge : edges) edge = {random.below(total), random.below(total)};
      CAPTURE(total);
      CAPTURE(degree);
      check_components(edges, total);
    }
  }
}

TEST_CASE("connected components of chains, stars and loops") {
  const std::int64_t total = 1000;
  std::vector<Edge> ascending, shuffled, star_of_last, loops;
  core::Random random(3, core::Purpose::subset, 0);
  const std::vector<std::int64_t> order = core::random_subset(random, total, total);
  for (std::int64_t i = 0; i + 1 < total; ++i) {
    ascending.push_back({i, i + 1});
    shuffled.push_back({order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(i) + 1]});
    star_of_last.push_back({total - 1, i});
    loops.push_back({i, i});
  }
  check_components(ascending, total);
  check_components(shuffled, total);
  check_components(star_of_last, total);
  check_components(loops, total);
}

TEST_CASE("connected components where every row is joined with every other") {
  std::vector<Edge> edges;
  for (std::int64_t a = 0; a < 60; ++a) {
    for (std::int64_t b = 0; b < 60; ++b) edges.push_back({a, b});
  }
  check_components(edges, 60);
}

TEST_CASE("RowMap fetches repeated rows and delivers records to their owners") {
  const std::int64_t total = 101;
  const auto [first, rows] = testing::uneven_slice(total);
  const search::RowMap map(world(), rows);
  CHECK(map.total() == total);
  CHECK(map.first() == first);
  std::vector<float> mine(static_cast<std::size_t>(rows));
  std::iota(mine.begin(), mine.end(), static_cast<float>(map.first()));
  const std::vector<std::int64_t> asked{100, 3, 3, 0, 57, 100};
  CHECK(map.fetch(mine, asked) == std::vector<float>{100, 3, 3, 0, 57, 100});
  CHECK(map.fetch(mine, {}).empty());

  struct Record {
    std::int64_t row;
    int sender;
  };
  std::vector<Record> records;
  for (std::int64_t row = total - 1; row >= 0; --row) records.push_back({row, world().rank()});
  const std::vector<Record> received = map.deliver(records);
  bool right = static_cast<std::int64_t>(received.size()) == rows * world().size();
  for (std::size_t i = 0; right && i < received.size(); ++i) {
    right = received[i].sender == static_cast<int>(static_cast<std::int64_t>(i) / rows) &&
            received[i].row == map.first() + static_cast<std::int64_t>(i) % rows;
  }
  CHECK(right);
}

}  // namespace
}  // namespace allosaur
