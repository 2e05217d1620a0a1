#include <cmath>
#include <limits>
#include <utility>

#include <ATen/ATen.h>

#include "devices.hpp"
#include "loss/cross_entropy.hpp"
#include "loss/koleo.hpp"
#include "loss/targets.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

/// This rank's share of rows that all ranks know.
at::Tensor share(const at::Tensor& rows) {
  return rows.tensor_split(testing::world().size())[static_cast<std::size_t>(testing::world().rank())];
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

at::Tensor probabilities(const loss::Targets& t) {
  return at::softmax(t.logits / t.temperature + t.shift, 1);
}

/// As published: exponentials, then rows and columns divided in turn, in float64.
at::Tensor plain_sinkhorn(const at::Tensor& logits, double temperature) {
  at::Tensor q = (logits.to(at::kDouble) / temperature).exp().t();
  const auto n = static_cast<double>(q.size(1)), k = static_cast<double>(q.size(0));
  q = q / q.sum();
  for (int i = 0; i < 3; ++i) {
    q = q / q.sum(1, true) / k;
    q = q / q.sum(0, true) / n;
  }
  return (q * n).t();
}

TEST_CASE("Sinkhorn-Knopp over ranks equals the plain algorithm") {
  at::manual_seed(0);
  for (const std::int64_t rows : {7, 40}) {
    const at::Tensor logits = at::randn({rows, 12}).clamp(-1, 1);
    const loss::Targets targets = loss::sinkhorn_knopp(testing::world(), share(logits).contiguous(), 0.05);
    CHECK(difference(probabilities(targets), share(plain_sinkhorn(logits, 0.05))) < 1e-5);
  }
}

TEST_CASE("Sinkhorn-Knopp survives logits that overflow exponentials, and ranks without rows") {
  auto& world = testing::world();
  const at::Tensor logits = world.rank() == 0 ? at::randn({6, 5}) * 50 : at::empty({0, 5});
  const loss::Targets targets = loss::sinkhorn_knopp(world, logits, 0.05);
  CHECK(targets.shift.isfinite().all().item<bool>());
}

TEST_CASE("the centre is folded in one step late and survives a checkpoint") {
  auto& world = testing::world();
  loss::Center center(3, at::TensorOptions().dtype(at::kFloat));
  center.update(world, at::full({3}, 2.0), 2);
  CHECK(difference(center.state()[0], at::zeros({3})) == 0);
  loss::Center restored(3, at::TensorOptions().dtype(at::kFloat));
  restored.restore(center.state());
  CHECK(difference(restored.value(), at::full({3}, 0.1)) < 1e-6);
  CHECK(difference(center.value(), at::full({3}, 0.1)) < 1e-6);
}

void check_cross_entropy(std::int64_t images, std::int64_t prototypes, at::ScalarType teacher_type, at::Device device) {
  at::manual_seed(3);
  const std::int64_t crops = 5, width = 6;
  const auto randn = [&](at::IntArrayRef shape) { return at::randn(shape).to(device); };
  at::Tensor student = randn({crops, images, width}), weights = randn({prototypes, width}),
             gain = weights.norm(2, 1, true) * (at::rand({prototypes, 1}).to(device) + 0.5);
  const at::Tensor logits = randn({2 * images, prototypes}).to(teacher_type);
  const loss::Targets targets = loss::centre(logits, randn({prototypes}), 0.07);
  at::Tensor pairs = at::ones({crops, 2});
  pairs[2][0] = 0;
  pairs[3][1] = 0;
  pairs[4].fill_(0);
  const at::Tensor row_weight = at::rand({images}).to(device);

  const auto reference = [&](const at::Tensor& s, const at::Tensor& v, const at::Tensor& g) {
    const at::Tensor w = v * (g / v.norm(2, 1, true));
    const at::Tensor log_p = at::log_softmax(at::matmul(s, w.t()) / 0.1, 2);
    const at::Tensor t =
        at::softmax(logits.to(at::kDouble) / targets.temperature + targets.shift, 1).view({2, images, prototypes});
    at::Tensor total = at::zeros({}, log_p.options());
    for (std::int64_t c = 0; c < crops; ++c)
      for (std::int64_t crop = 0; crop < 2; ++crop)
        total = total - ((log_p[c] * t[crop]).sum(1) * row_weight).sum() * pairs[c][crop];
    return total;
  };
  std::vector<at::Tensor> ours, theirs;
  for (const at::Tensor& leaf : {student, weights, gain}) {
    ours.push_back(leaf.clone().requires_grad_(true));
    theirs.push_back(leaf.to(at::kDouble).requires_grad_(true));
  }
  const loss::CrossEntropy result = loss::prototype_cross_entropy(ours[0].flatten(0, 1), {ours[2], ours[1]},
                                                                  {{targets, pairs, row_weight}}, {.scale = 3});
  const at::Tensor expected = reference(theirs[0], theirs[1], theirs[2]);
  CHECK(result.total.item<double>() == doctest::Approx(3 * expected.item<double>()).epsilon(1e-5));
  CHECK(result.per_crop[0].sum().item<double>() == doctest::Approx(expected.item<double>()).epsilon(1e-5));
  result.total.backward();
  (expected * 3).backward();
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    CHECK((ours[i].grad() - theirs[i].grad()).norm().item<double>() < 1e-5 * theirs[i].grad().norm().item<double>());
  }
}

TEST_CASE("cross-entropy and its gradients equal autograd on materialised scores") {
  for (const at::Device device : testing::devices())
    for (const std::int64_t prototypes : {9, 5001}) check_cross_entropy(5, prototypes, at::kFloat, device);
}
TEST_CASE("cross-entropy over several chunks of rows is the same") {
  check_cross_entropy(3, 800'000, at::kFloat, at::kCPU);  // two rows of five crops a chunk, then one
}
TEST_CASE("comparisons that share prototypes add up, each with its weight") {
  at::manual_seed(5);
  const loss::Targets some = loss::centre(at::randn({4, 7}), at::zeros({7}), 0.07),
                      others = loss::centre(at::randn({5, 7}), at::zeros({7}), 0.07);
  const loss::Comparison first{some, at::ones({3, 2}), at::rand({2}), 0.5},
      second{others, at::ones({1, 1}), at::rand({5}), 2};
  at::Tensor student = at::randn({11, 6}).requires_grad_(true);
  model::Prototypes layer{at::rand({7, 1}).add_(0.5).requires_grad_(true), at::randn({7, 6}).requires_grad_(true)};
  const loss::CrossEntropy both = loss::prototype_cross_entropy(student, layer, {first, second});
  both.total.backward();
  const at::Tensor grad_student = student.grad().clone(), grad_gain = layer.gain.grad().clone(),
                   grad_direction = layer.direction.grad().clone();
  for (at::Tensor* leaf : {&student, &layer.gain, &layer.direction}) leaf->mutable_grad().zero_();
  const auto alone = [&](loss::Comparison comparison, const at::Tensor& rows) {
    const double weight = std::exchange(comparison.weight, 1);
    const loss::CrossEntropy one = loss::prototype_cross_entropy(rows, layer, {comparison}, {.scale = weight});
    one.total.backward();
    return one;
  };
  const loss::CrossEntropy one = alone(first, student.narrow(0, 0, 6)), two = alone(second, student.narrow(0, 6, 5));
  CHECK(both.total.item<double>() ==
        doctest::Approx(one.total.item<double>() + two.total.item<double>()).epsilon(1e-6));
  CHECK(difference(both.per_crop[0], one.per_crop[0]) < 1e-6);
  CHECK(difference(both.per_crop[1], two.per_crop[0]) < 1e-6);
  CHECK(difference(grad_student, student.grad()) < 1e-5);
  CHECK(difference(grad_gain, layer.gain.grad()) < 1e-5);  // added up over calls
  CHECK(difference(grad_direction, layer.direction.grad()) < 1e-5);
}
TEST_CASE("a comparison without rows adds nothing") {
  at::manual_seed(6);
  const loss::Targets some = loss::centre(at::randn({4, 7}), at::zeros({7}), 0.07),
                      none = loss::centre(at::empty({0, 7}), at::zeros({7}), 0.07);
  const loss::Comparison first{some, at::ones({2, 2}), at::rand({2})}, second{none, at::ones({1, 1}), at::empty({0})};
  const at::Tensor values = at::randn({4, 6});
  const model::Prototypes layer{at::ones({7, 1}), at::randn({7, 6})};
  const auto gradient = [&](const std::vector<loss::Comparison>& comparisons) {
    const at::Tensor student = values.clone().requires_grad_(true);
    loss::prototype_cross_entropy(student, layer, comparisons).total.backward();
    return student.grad();
  };
  CHECK(at::equal(gradient({first, second}), gradient({first})));
  const loss::CrossEntropy alone =
      loss::prototype_cross_entropy(at::empty({0, 6}).requires_grad_(true), layer, {second});
  CHECK(alone.total.item<double>() == 0);
  alone.total.backward();
}
TEST_CASE("the teacher's logits may be kept in 16 bits") {
  for (const at::Device device : testing::devices())
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) check_cross_entropy(5, 5001, type, device);
  const at::Tensor logits = at::randn({8, 12}).to(at::kBFloat16);
  const auto shift = [](const at::Tensor& rows) { return loss::sinkhorn_knopp(testing::world(), rows, 0.1).shift; };
  CHECK(at::equal(shift(logits), shift(logits.to(at::kFloat))));
}

TEST_CASE("target statistics tell spread from collapse") {
  const at::Tensor spread = at::eye(8).repeat({4, 1}) * 10, collapsed = at::zeros({32, 8});
  const auto of = [](const at::Tensor& logits) { return loss::target_statistics({logits, at::zeros({8}), 0.07}); };
  CHECK(of(spread).entropy < 0.01);
  CHECK(of(spread).marginal == doctest::Approx(std::log(8.0)).epsilon(1e-3));
  CHECK(of(collapsed).entropy == doctest::Approx(std::log(8.0)).epsilon(1e-3));
}

TEST_CASE("KoLeo is minus the log distance to the nearest neighbour within groups, finite for copies") {
  const at::Tensor x = at::tensor({1.0F, 0.0F, 0.0F, 2.0F, -3.0F, 0.0F, 0.0F, -1.0F}).view({4, 2});
  CHECK(loss::koleo(x, 4).item<double>() == doctest::Approx(-0.5 * std::log(2.0)).epsilon(1e-5));
  CHECK(loss::koleo(x, 2).item<double>() == doctest::Approx(-0.5 * std::log(2.0)).epsilon(1e-5));
  const at::Tensor alone = x.clone().requires_grad_();
  const at::Tensor constant = loss::koleo(alone, 1);
  constant.backward();
  CHECK(constant.item<double>() == doctest::Approx(-std::log(1e-8 * (std::sqrt(2.0) + 1))).epsilon(1e-5));
  CHECK(alone.grad().abs().max().item<double>() == 0);
  CHECK(std::isfinite(loss::koleo(at::ones({4, 2}), 4).item<double>()));
}

}  // namespace
}  // namespace allosaur
