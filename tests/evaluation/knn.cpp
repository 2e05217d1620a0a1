#include "evaluation/knn.hpp"

#include <cmath>
#include <numeric>

#include "evaluation/toy.hpp"
#include "testing.hpp"

namespace allosaur::evaluation {
namespace {

using testing::share;
using testing::world;

/// The protocol in plain loops: top-1 accuracy with `k` of `max_k` neighbours.
double serial_top1(const Frozen& bank, const Frozen& queries, std::size_t k, std::size_t max_k, double temperature,
                   std::size_t classes) {
  const auto vectors = [](const Frozen& frozen) {
    std::vector<std::vector<double>> rows;
    for (std::int64_t i = 0; i < frozen.labels.numel(); ++i) {
      std::vector<double> row;
      double norm = 0;
      for (std::int64_t d = 0; d < frozen.cls.size(2); ++d) {
        row.push_back(frozen.cls[i][-1][d].item<double>());
        norm += row.back() * row.back();
      }
      for (double& value : row) value /= std::sqrt(norm);
      rows.push_back(row);
    }
    return rows;
  };
  const auto database = vectors(bank), points = vectors(queries);
  double right = 0;
  for (std::size_t q = 0; q < points.size(); ++q) {
    std::vector<std::pair<double, std::size_t>> neighbours;
    for (std::size_t b = 0; b < database.size(); ++b) {
      neighbours.emplace_back(-std::inner_product(points[q].begin(), points[q].end(), database[b].begin(), 0.0), b);
    }
    std::sort(neighbours.begin(), neighbours.end());
    double sum = 0;
    for (std::size_t n = 0; n < max_k; ++n) sum += std::exp(-neighbours[n].first / temperature);
    std::vector<double> votes(classes);
    for (std::size_t n = 0; n < k; ++n) {
      const auto label = bank.labels[static_cast<std::int64_t>(neighbours[n].second)].item<std::int64_t>();
      votes[static_cast<std::size_t>(label)] += std::exp(-neighbours[n].first / temperature) / sum;
    }
    const auto winner = std::max_element(votes.begin(), votes.end()) - votes.begin();
    right += winner == queries.labels[static_cast<std::int64_t>(q)].item<std::int64_t>();
  }
  return right / static_cast<double>(points.size());
}

TEST_CASE("k-NN equals plain loops for every k, with a bank that ranks share unevenly") {
  const Frozen bank = testing::clouds(90, 4, 2, 6, 1.2, 1), queries = testing::clouds(50, 4, 2, 6, 1.2, 2);
  const KnnConfig config{.k = {20, 3, 1000, 5000}, .temperature = 0.2};
  const KnnResult result = knn(world(), share(world(), bank), share(world(), queries), 4, config);
  REQUIRE(result.scores.size() == 3);  // both of the large k are the whole bank
  const std::int64_t expected_k[] = {3, 20, 90};
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(result.scores[i].k == expected_k[i]);
    const double expected = serial_top1(bank, queries, static_cast<std::size_t>(expected_k[i]), 90, 0.2, 4);
    CHECK(result.scores[i].accuracy.top1 == doctest::Approx(expected));
    CHECK(expected > 0.4);
    CHECK(expected < 0.99);
  }
}

TEST_CASE("k-NN with a known answer: one near neighbour outvotes two far ones only at k = 1 or low temperature") {
  const auto frozen = [](const std::vector<double>& degrees, const std::vector<std::int64_t>& labels) {
    const at::Tensor angle = at::tensor(degrees, at::kDouble).mul_(std::acos(-1.0) / 180);
    const at::Tensor cls = at::stack({angle.cos(), angle.sin()}, 1).mul_(5).to(at::kFloat).unsqueeze(1);
    return Frozen{cls, {}, at::tensor(labels, at::kLong)};
  };
  const bool first = world().rank() == 0;
  const Frozen bank = first ? frozen({0, 30, -30}, {0, 1, 1}) : frozen({180}, {2});
  const Frozen query = first ? frozen({1}, {0}) : frozen({}, {});
  const KnnResult warm = knn(world(), bank, query, 3, {.k = {1, 3}, .temperature = 1});
  CHECK(warm.scores[0].accuracy.top1 == 1);
  CHECK(warm.scores[1].accuracy.top1 == 0);
  CHECK(warm.best().k == 1);
  const KnnResult cold = knn(world(), bank, query, 3, {.k = {1, 3}, .temperature = 0.07});
  CHECK(cold.scores[1].accuracy.top1 == 1);
}

TEST_CASE("nearly constant features need centring in float64") {
  Frozen bank = share(world(), testing::nearly_constant(120, 4, 1));
  Frozen queries = share(world(), testing::nearly_constant(60, 4, 2));
  const double uncentred = knn(world(), bank, queries, 4, {.k = {10}}).best().accuracy.top1;
  const at::Tensor before = bank.cls.clone();
  const at::Tensor untouched = bank.cls;
  centre(world(), bank, queries);
  CHECK(untouched.equal(before));
  const double centred = knn(world(), bank, queries, 4, {.k = {10}}).best().accuracy.top1;
  CHECK(uncentred < 0.9);
  CHECK(centred == 1);

  at::Tensor moments = at::zeros({2}, at::kDouble);
  moments[0] = bank.cls.sum(at::kDouble);
  moments[1] = bank.cls.to(at::kDouble).square().sum();
  world().all_reduce(moments, comm::ReduceOp::sum);
  CHECK(moments[0].item<double>() == doctest::Approx(0).epsilon(1e-3));
  CHECK(moments[1].item<double>() / (120 * 16) == doctest::Approx(1));
}

TEST_CASE("constant features stay finite when centred") {
  Frozen bank{at::ones({4, 1, 3}), {}, at::tensor({0, 1, 0, 1}, at::kLong)}, queries = bank;
  centre(world(), bank, queries);
  CHECK(bank.cls.eq(0).all().item<bool>());
  CHECK(knn(world(), bank, queries, 2, {}).best().accuracy.top1 == doctest::Approx(0.5));
}

}  // namespace
}  // namespace allosaur::evaluation
