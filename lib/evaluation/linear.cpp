#include "evaluation/linear.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <set>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/random.hpp"

namespace allosaur::evaluation {
namespace {

/// The heads that read the same input, one a learning rate.
struct Stack {
  std::int64_t last_blocks;
  bool average_patches;
  std::size_t first_head;
  at::Tensor weights, momentum;  // f32 [H, C, D + 1]
  at::Tensor gradient;           // likewise; a view of the buffer that is all-reduced

  at::Tensor inputs(const Frozen& frozen, const at::Tensor& rows) const {
    const at::Tensor cls = frozen.cls.narrow(1, frozen.cls.size(1) - last_blocks, last_blocks).index_select(0, rows);
    std::vector<at::Tensor> parts = {cls.flatten(1)};
    if (average_patches) parts.push_back(frozen.patch_mean.index_select(0, rows));
    parts.push_back(at::ones({rows.numel(), 1}, at::kFloat));
    return at::cat(parts, 1);
  }
};

/// The order in which training samples (numbered over ranks) are visited, one random permutation after the other.
class SampleOrder {
 public:
  SampleOrder(std::int64_t total, std::int64_t first, std::int64_t rows, std::uint64_t seed)
      : total_(total), first_(first), rows_(rows), seed_(seed) {}

  /// Those of the samples at positions [position, position + count) that this rank holds, as its row numbers.
  at::Tensor rows_at(std::int64_t position, std::int64_t count) {
    std::vector<std::int64_t> rows;
    for (std::int64_t end = position + count; position < end; ++position) {
      if (const std::int64_t epoch = position / total_; epoch != epoch_) {
        permutation_.emplace(total_, seed_, static_cast<std::uint64_t>(epoch));
        epoch_ = epoch;
      }
      const std::int64_t row = (*permutation_)(position % total_) - first_;
      if (row >= 0 && row < rows_) rows.push_back(row);
    }
    return at::tensor(rows, at::kLong);
  }

 private:
  std::int64_t total_, first_, rows_;
  std::uint64_t seed_;
  std::int64_t epoch_ = -1;
  std::optional<core::Permutation> permutation_;
};

at::Tensor initial_weights(const std::vector<Head>& heads, const Stack& stack, std::int64_t classes, std::int64_t width,
                           std::uint64_t seed) {
  const auto count = static_cast<std::int64_t>(heads.size() - stack.first_head);
  const at::Tensor weights = at::zeros({count, classes, width + 1}, at::kFloat);
  float* value = weights.mutable_data_ptr<float>();
  for (std::size_t head = stack.first_head; head < heads.size(); ++head) {
    core::Random random(seed, core::Purpose::probe, head);
    for (std::int64_t row = 0; row < classes; ++row, ++value) {
      for (std::int64_t column = 0; column < width; ++column) *value++ = static_cast<float>(0.01 * random.normal());
    }
  }
  return weights;
}

/// Fills `heads` in the order of the grid and returns them grouped by input, with initial weights.
std::vector<Stack> make_stacks(std::vector<Head>& heads, std::int64_t depth, std::int64_t dim, std::int64_t classes,
                               const LinearConfig& config) {
  const std::set<double> learning_rates(config.learning_rates.begin(), config.learning_rates.end());
  std::set<std::int64_t> settings;  // of last blocks: clipping may make two of them equal
  for (const std::int64_t blocks : config.last_blocks) settings.insert(std::min(blocks, depth));

  std::vector<Stack> stacks;
  for (const std::int64_t blocks : settings) {
    for (const bool average : {false, true}) {
      Stack& stack = stacks.emplace_back(Stack{blocks, average, heads.size(), {}, {}, {}});
      for (const double rate : learning_rates) {
        heads.push_back({.name = fmt::format("classifier_{}_blocks_avgpool_{}_lr_{}", blocks, average, rate),
                         .last_blocks = blocks,
                         .average_patches = average,
                         .learning_rate = rate,
                         .accuracy = {}});
      }
      stack.weights = initial_weights(heads, stack, classes, (blocks + average) * dim, config.seed);
      stack.momentum = at::zeros_like(stack.weights);
    }
  }
  return stacks;
}

/// One buffer for all gradients, so that an iteration is one all-reduce; its last value counts ranks that want to stop.
at::Tensor attach_gradients(std::vector<Stack>& stacks) {
  std::int64_t total = 1;
  for (const Stack& stack : stacks) total += stack.weights.numel();
  at::Tensor buffer = at::zeros({total}, at::kFloat);
  std::int64_t begin = 0;
  for (Stack& stack : stacks) {
    stack.gradient = buffer.narrow(0, begin, stack.weights.numel()).view(stack.weights.sizes());
    begin += stack.weights.numel();
  }
  return buffer;
}

void score(comm::Communicator& group, const std::vector<Stack>& stacks, const Frozen& test, std::int64_t classes,
           std::vector<Head>& heads, const std::function<void()>& alive) {
  std::vector<HitCounts> hits(heads.size(), HitCounts(classes));
  constexpr std::int64_t kChunk = 1024;  // bounds the logits, [chunk, heads x classes]
  for (std::int64_t row = 0; row < test.labels.numel(); row += kChunk) {
    const at::Tensor rows = at::arange(row, std::min(row + kChunk, test.labels.numel()), at::kLong);
    const at::Tensor labels = test.labels.index_select(0, rows);
    for (const Stack& stack : stacks) {
      const at::Tensor logits = stack.inputs(test, rows).mm(stack.weights.flatten(0, 1).t());  // [b, H * C]
      for (std::int64_t head = 0; head < stack.weights.size(0); ++head) {
        hits[stack.first_head + static_cast<std::size_t>(head)].add(logits.narrow(1, head * classes, classes), labels);
      }
    }
    if (alive) alive();
  }
  for (std::size_t head = 0; head < heads.size(); ++head) heads[head].accuracy = hits[head].reduce(group);
}

}  // namespace

const Head& LinearResult::best() const {
  return *std::max_element(heads.begin(), heads.end(),
                           [](const Head& a, const Head& b) { return a.accuracy.top1 < b.accuracy.top1; });
}

void stacked_gradient(const at::Tensor& weights, const at::Tensor& inputs, const at::Tensor& labels, double divisor,
                      const at::Tensor& gradient) {
  const std::int64_t heads = weights.size(0), classes = weights.size(1), samples = labels.numel();
  const at::Tensor logits = inputs.mm(weights.flatten(0, 1).t()).view({samples, heads, classes});
  const at::Tensor right = at::one_hot(labels, classes).unsqueeze(1);  // [b, 1, C]
  const at::Tensor error = logits.softmax(2).sub_(right).div_(divisor).view({samples, heads * classes});
  at::Tensor out = gradient.view({heads * classes, inputs.size(1)});
  at::mm_out(out, error.t(), inputs);
}

LinearResult linear_probe(comm::Communicator& group, const Frozen& train, const Frozen& test, std::int64_t classes,
                          const LinearConfig& config, const ProbeHooks& hooks) {
  LinearResult result;
  std::vector<Stack> stacks = make_stacks(result.heads, train.cls.size(1), train.cls.size(2), classes, config);
  const at::Tensor gradients = attach_gradients(stacks);
  float& stopping = gradients.mutable_data_ptr<float>()[gradients.numel() - 1];
  const std::set<double> base_rates(config.learning_rates.begin(), config.learning_rates.end());
  const at::Tensor rates = at::tensor(std::vector<double>(base_rates.begin(), base_rates.end()), at::kFloat)
                               .mul_(static_cast<double>(config.batch) / 256)
                               .view({-1, 1, 1});

  const std::int64_t rows = train.labels.numel();
  const std::int64_t first = group.exclusive_scan(rows);
  SampleOrder order(group.sum(rows), first, rows, config.seed);
  std::vector<at::Tensor> tensors;
  for (const Stack& stack : stacks) tensors.insert(tensors.end(), {stack.weights, stack.momentum});
  std::int64_t iteration = 0;
  if (hooks.state != nullptr && !hooks.state->tensors.empty()) {
    iteration = hooks.state->iteration;
    for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].copy_(hooks.state->tensors.at(i));
  }
  for (; iteration < config.iterations; ++iteration) {
    const at::Tensor batch = order.rows_at(iteration * config.batch, config.batch);
    const at::Tensor labels = train.labels.index_select(0, batch);
    for (const Stack& stack : stacks) {
      stacked_gradient(stack.weights, stack.inputs(train, batch), labels, static_cast<double>(config.batch),
                       stack.gradient);
    }
    stopping = hooks.stop && hooks.stop() ? 1 : 0;
    group.all_reduce(gradients, comm::ReduceOp::sum);
    if (stopping > 0) {
      result.complete = false;
      if (hooks.state != nullptr) *hooks.state = {iteration, tensors};
      return result;
    }
    const double done = static_cast<double>(iteration) / static_cast<double>(config.iterations);
    const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * done));
    for (const Stack& stack : stacks) {
      stack.momentum.mul_(config.momentum).add_(stack.gradient);
      stack.weights.addcmul_(stack.momentum, rates, -cosine);
    }
    if (hooks.progress) hooks.progress(iteration + 1);
  }

  score(group, stacks, test, classes, result.heads, hooks.alive);
  return result;
}

}  // namespace allosaur::evaluation
