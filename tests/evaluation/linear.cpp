#include "evaluation/linear.hpp"

#include <set>

#include "evaluation/toy.hpp"
#include "testing.hpp"

namespace allosaur::evaluation {
namespace {

using testing::share;
using testing::world;

LinearConfig quick() {
  LinearConfig config;
  config.learning_rates = {1e-6, 1e-3, 0.1};
  config.iterations = 60;
  config.batch = 64;
  return config;
}

TEST_CASE("the gradient of stacked heads is autograd's of the summed cross-entropies") {
  const std::int64_t heads = 3, classes = 4, width = 5, samples = 7;
  const at::Tensor inputs = at::arange(samples * width, at::kFloat).sin().view({samples, width});
  const at::Tensor labels = at::arange(samples, at::kLong).remainder(classes);
  const at::Tensor weights = at::arange(heads * classes * width, at::kFloat).cos().view({heads, classes, width});
  at::Tensor gradient = at::full_like(weights, 9);
  stacked_gradient(weights, inputs, labels, 10, gradient);

  const at::Tensor leaf = weights.clone().requires_grad_(true);
  at::Tensor loss = at::zeros({});
  for (std::int64_t head = 0; head < heads; ++head) {
    loss = loss + at::cross_entropy_loss(inputs.mm(leaf[head].t()), labels) * (samples / 10.0);
  }
  loss.backward();
  CHECK(at::allclose(gradient, leaf.grad(), 1e-4, 1e-6));

  stacked_gradient(weights, inputs.narrow(0, 0, 0), labels.narrow(0, 0, 0), 10, gradient);
  CHECK(gradient.eq(0).all().item<bool>());
}

TEST_CASE("the grid has a unique name for every head, with blocks clipped to the depth") {
  const auto names = [](std::int64_t depth) {
    const Frozen tiny = testing::clouds(8, 2, depth, 3, 0.1, 1);
    LinearConfig config;
    config.iterations = 1;
    config.batch = 4;
    std::set<std::string> unique;
    const LinearResult result = linear_probe(world(), share(world(), tiny), share(world(), tiny), 2, config);
    for (const Head& head : result.heads) unique.insert(head.name);
    CHECK(unique.size() == result.heads.size());
    return unique;
  };
  CHECK(names(5).size() == 52);
  CHECK(names(3).contains("classifier_3_blocks_avgpool_true_lr_0.05"));
  CHECK(names(1).size() == 26);
}

TEST_CASE("a separable set is learnt by the best head, and not by one that hardly moves") {
  const Frozen train = testing::clouds(120, 5, 4, 8, 0.2, 1), test = testing::clouds(60, 5, 4, 8, 0.2, 2);
  const LinearResult result = linear_probe(world(), share(world(), train), share(world(), test), 5, quick());
  CHECK(result.best().accuracy.top1 == 1);
  CHECK(result.best().accuracy.mean_per_class == 1);
  for (const Head& head : result.heads) {
    CHECK(head.accuracy.top1 <= result.best().accuracy.top1);
    CHECK(head.accuracy.top5 == 1);  // of five classes
    if (head.learning_rate < 1e-5) CHECK(head.accuracy.top1 < 0.9);
  }
}

TEST_CASE("the best head is the one with the highest top-1, the earliest among equals") {
  LinearResult result;
  for (const double top1 : {0.2, 0.7, 0.7, 0.1}) {
    result.heads.push_back({.name = std::to_string(result.heads.size()), .accuracy = {.top1 = top1}});
  }
  CHECK(result.best().name == "1");
}

TEST_CASE("the probe gives the same on one rank and on all") {
  const Frozen train = testing::clouds(100, 4, 2, 6, 1.0, 1), test = testing::clouds(80, 4, 2, 6, 1.0, 2);
  const auto alone = world().split(world().rank(), 0);
  const LinearResult expected = linear_probe(*alone, train, test, 4, quick());
  const LinearResult result = linear_probe(world(), share(world(), train), share(world(), test), 4, quick());
  REQUIRE(result.heads.size() == expected.heads.size());
  for (std::size_t head = 0; head < result.heads.size(); ++head) {
    CHECK(result.heads[head].name == expected.heads[head].name);
    CHECK(result.heads[head].accuracy.top1 == doctest::Approx(expected.heads[head].accuracy.top1).epsilon(1e-4));
  }
  CHECK(expected.best().accuracy.top1 > 0.6);
  CHECK(expected.best().accuracy.top1 < 1);
}

TEST_CASE("a probe that was stopped goes on to the same heads") {
  const Frozen train = testing::clouds(100, 4, 2, 6, 1.0, 1), test = testing::clouds(80, 4, 2, 6, 1.0, 2);
  const auto probe = [&](const ProbeHooks& hooks) {
    return linear_probe(world(), share(world(), train), share(world(), test), 4, quick(), hooks);
  };
  const LinearResult whole = probe({});
  std::int64_t done = 0, first = -1;
  ProbeState state;
  ProbeHooks hooks{.progress = [&](std::int64_t iteration) { done = iteration; },
                   .stop = [&] { return done == 23; },
                   .alive = {},
                   .state = &state};
  CHECK_FALSE(probe(hooks).complete);
  CHECK(state.iteration == 23);
  hooks.stop = {};
  hooks.progress = [&](std::int64_t iteration) { first = first < 0 ? iteration : first; };
  const LinearResult result = probe(hooks);
  CHECK(first == 24);
  CHECK(result.complete);
  for (std::size_t head = 0; head < whole.heads.size(); ++head)
    CHECK(result.heads[head].accuracy.top1 == whole.heads[head].accuracy.top1);
}

TEST_CASE("centred, nearly constant features can be learnt") {
  Frozen train = share(world(), testing::nearly_constant(120, 4, 1));
  Frozen test = share(world(), testing::nearly_constant(60, 4, 2));
  CHECK(linear_probe(world(), train, test, 4, quick()).best().accuracy.top1 < 0.9);
  centre(world(), train, test);
  CHECK(linear_probe(world(), train, test, 4, quick()).best().accuracy.top1 == 1);
}

}  // namespace
}  // namespace allosaur::evaluation
