#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "search/top_k.hpp"
#include "slices.hpp"

namespace allosaur {
namespace {

using testing::world;

/// Integer-valued rows, so that products are exact and many similarities are equal. The same on every rank.
at::Tensor small_integers(std::int64_t rows, std::int64_t width, std::int64_t seed) {
  const at::Tensor position = at::arange(rows * width, at::kLong);
  return (at::remainder(position * position * 7 + position * 13 + seed, 11) - 5).to(at::kFloat).view({rows, width});
}

/// A plain double loop over all pairs.
void check_against_loop(const at::Tensor& queries, const at::Tensor& database, std::int64_t k,
                        const search::Neighbours& found) {
  const at::Tensor products = at::mm(queries.to(at::kDouble), database.to(at::kDouble).t()).to(at::kFloat);
  bool similarities_agree = true, indices_agree = true;
  for (std::int64_t q = 0; q < queries.size(0); ++q) {
    const float* row = products.const_data_ptr<float>() + q * database.size(0);
    std::vector<std::int64_t> order(static_cast<std::size_t>(database.size(0)));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return row[a] > row[b]; });
    for (std::int64_t j = 0; j < k; ++j) {
      const bool exists = j < static_cast<std::int64_t>(order.size());
      const std::int64_t expected = exists ? order[static_cast<std::size_t>(j)] : -1;
      const float similarity = exists ? row[expected] : -std::numeric_limits<float>::infinity();
      indices_agree &= found.index.const_data_ptr<std::int64_t>()[q * k + j] == expected;
      similarities_agree &= found.similarity.const_data_ptr<float>()[q * k + j] == similarity;
    }
  }
  CHECK(indices_agree);
  CHECK(similarities_agree);
}

TEST_CASE("exact_top_k equals a double loop, ties included") {
  for (const std::int64_t rows : {1, 7, 301, 2100}) {
    const at::Tensor database = small_integers(rows, 6, 3);
    const auto [first, count] = testing::uneven_slice(rows);
    const at::Tensor mine = database.narrow(0, first, count);
    for (const std::int64_t k : {std::int64_t{1}, std::int64_t{5}, rows + 3}) {
      if (k > 400) continue;
      CAPTURE(rows);
      CAPTURE(k);
      const at::Tensor queries = small_integers(17 + 3 * world().rank(), 6, 8);
      check_against_loop(queries, database, k, search::exact_top_k(world(), queries, mine, k));
      check_against_loop(mine, database, k, search::exact_top_k(world(), mine, mine, k));
    }
  }
}

TEST_CASE("exact_top_k of equal rows gives the lowest indices") {
  const std::int64_t rows = 500;
  const at::Tensor database = at::ones({rows, 4});
  const auto [first, count] = testing::uneven_slice(rows);
  const auto found =
      search::exact_top_k(world(), database.narrow(0, first, count), database.narrow(0, first, count), 9);
  bool right = true;
  for (std::int64_t q = 0; q < count; ++q) {
    for (std::int64_t j = 0; j < 9; ++j) right &= found.index[q][j].item<std::int64_t>() == j;
  }
  CHECK(right);
}

TEST_CASE("exact_top_k of an empty database finds nothing") {
  const auto found = search::exact_top_k(world(), at::ones({3, 4}), at::empty({0, 4}), 2);
  CHECK(found.index.eq(-1).all().item<bool>());
  CHECK(found.similarity.eq(-std::numeric_limits<float>::infinity()).all().item<bool>());
}

TEST_CASE("exact_top_k sends the database once around the ring") {
  const std::int64_t rows = 40, width = 8;
  const at::Tensor mine = at::ones({rows, width});
  search::exact_top_k(world(), mine, mine, 3);  // whatever is set up at the first call
  const std::int64_t before = world().traffic().bytes_sent;
  search::exact_top_k(world(), mine, mine, 3);
  const std::int64_t sent = world().traffic().bytes_sent - before;
  const std::int64_t around = (world().size() - 1) * 4 * width * rows;
  CHECK(sent >= around);
  CHECK(sent <= around + 64 * world().size());  // and the row counts
}

}  // namespace
}  // namespace allosaur
