#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "evaluation/frozen.hpp"
#include "evaluation/metrics.hpp"

namespace allosaur::evaluation {

/// The linear probe (DINOv2 paper, appendix B.3; dinov2/eval/linear.py): a grid of linear classifiers on frozen
/// features.
struct LinearConfig {
  std::vector<double> learning_rates = {1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1};
  std::vector<std::int64_t> last_blocks = {1, 4};  ///< clipped to the depth of the features
  std::int64_t iterations = 12500;
  std::int64_t batch = 1024;  ///< over all ranks; learning rates are for 256 and scaled
  double momentum = 0.9;
  std::uint64_t seed = 0;
};

/// Where a probe stands that was stopped; it goes on from there on any number of ranks.
struct ProbeState {
  std::int64_t iteration = 0;       ///< how many are done
  std::vector<at::Tensor> tensors;  ///< weights and momentum of the heads, the same on every rank; none: at the start
};

/// What the probe tells and asks on the way; any may be empty.
struct ProbeHooks {
  std::function<void(std::int64_t iteration)> progress;  ///< after each iteration
  std::function<bool()> stop;   ///< whether to leave early: where one rank says so, all do after the same iteration
  std::function<void()> alive;  ///< now and then while the heads are scored
  ProbeState* state = nullptr;  ///< what to go on from; where it stands when it leaves early
};

/// One classifier of the grid.
struct Head {
  std::string name;  ///< unique, e.g. classifier_4_blocks_avgpool_true_lr_0.001
  std::int64_t last_blocks = 1;
  bool average_patches = false;
  double learning_rate = 0;  ///< before scaling
  Accuracy accuracy;         ///< on the test set
};

struct LinearResult {
  std::vector<Head> heads;
  bool complete = true;      ///< false: stopped before the end, and of no use
  const Head& best() const;  ///< by top-1, the earliest among equals
};

/// Softmax cross-entropy of H classifiers on the same inputs, differentiated in closed form. `weights` f32 [H, C, D +
/// 1] (last column: bias), `inputs` f32 [b, D + 1] (last column: 1), `labels` i64 [b]. Writes to `gradient` (like
/// `weights`, contiguous) the derivative of the sum over heads and samples of the cross-entropy, divided by `divisor`.
void stacked_gradient(const at::Tensor& weights, const at::Tensor& inputs, const at::Tensor& labels, double divisor,
                      const at::Tensor& gradient);

/// Collective. Trains the whole grid in one pass over random batches of `train` (every learning rate, with the class
/// tokens of the last blocks, with and without the mean patch), and scores every head on `test`. Heads of one kind of
/// input are one matrix. SGD with momentum, cosine to 0. A rank computes the samples it holds; gradients are
/// all-reduced, so the result is the same on any number of ranks up to the order of sums. `train` has a row on at least
/// one rank and patch means; labels are in [0, classes). Cost a rank and iteration: its share of the batch, and one
/// all-reduce of the heads (4 bytes x learning rates x classes x (sum of input widths)).
LinearResult linear_probe(comm::Communicator& group, const Frozen& train, const Frozen& test, std::int64_t classes,
                          const LinearConfig& config, const ProbeHooks& hooks = {});

}  // namespace allosaur::evaluation
