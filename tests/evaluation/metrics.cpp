#include "evaluation/metrics.hpp"

#include <limits>

#include <ATen/ATen.h>

#include "testing.hpp"

namespace allosaur::evaluation {
namespace {

TEST_CASE("the rank of the right class: equal scores go to the lower class, NaN is never right") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const at::Tensor scores = at::tensor({0.1F, 0.7F, 0.2F,  //
                                        0.5F, 0.5F, 0.5F,  //
                                        nan, nan, nan,     //
                                        nan, 0.9F, 0.1F})
                                .view({4, 3});
  const at::Tensor ranks = label_ranks(scores, at::tensor({2, 1, 0, 1}, at::kLong));
  CHECK(ranks[0].item<std::int64_t>() == 1);
  CHECK(ranks[1].item<std::int64_t>() == 1);
  CHECK(ranks[2].item<std::int64_t>() > 0);
  CHECK(ranks[3].item<std::int64_t>() == 1);
}

TEST_CASE("accuracies over ranks count every sample once and every class that occurs alike") {
  comm::Communicator& group = testing::world();
  // Class 0: three samples, all right. Class 1: one sample, wrong. Classes 2 to 6 do not occur.
  HitCounts hits(7);
  if (group.rank() == 0) {
    at::Tensor scores = at::zeros({3, 7});
    scores.select(1, 0).fill_(1);
    hits.add(scores, at::zeros({3}, at::kLong));
  }
  if (group.rank() == group.size() - 1) {
    hits.add(at::arange(7, at::kFloat).unsqueeze(0), at::ones({1}, at::kLong));  // class 1 comes sixth
  }
  const Accuracy accuracy = hits.reduce(group);
  CHECK(accuracy.top1 == doctest::Approx(0.75));
  CHECK(accuracy.top5 == doctest::Approx(0.75));
  CHECK(accuracy.mean_per_class == doctest::Approx(0.5));
}

}  // namespace
}  // namespace allosaur::evaluation
