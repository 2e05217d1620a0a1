#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "train/config.hpp"

namespace allosaur::train {

/// What a run will need, counted from its configuration before anything is allocated.
struct Plan {
  /// Parameters of one network, in the units of Units.
  struct Unit {
    std::string name;
    std::int64_t parameters;
  };
  /// Bytes on one rank, exact up to the alignment of units where they are not called an estimate.
  struct Memory {
    std::int64_t weights = 0;      ///< student, EMA and a distilled teacher, compute type
    std::int64_t gradients = 0;    ///< compute type
    std::int64_t moments = 0;      ///< of AdamW, float32, 1/W
    std::int64_t masters = 0;      ///< float32 weights and EMA, 1/W; in float32 they are slices of the weights
    std::int64_t staging = 0;      ///< float32 sums of 16-bit gradients
    std::int64_t activations = 0;  ///< what autograd keeps until backward: an estimate
    std::int64_t loss = 0;         ///< teacher logits, prototypes and their gradients, chunks: an estimate
    std::int64_t images = 0;       ///< crops of the batch at work and of those decoded ahead, host memory
    std::int64_t checkpoint = 0;   ///< the copy that a checkpoint is written from in the background, host memory
    std::int64_t total() const noexcept;
    std::int64_t on_device() const noexcept;  ///< without what stays in host memory when a GPU computes
  };
  /// Bytes one rank sends in an iteration, with ring algorithms (comm::Traffic).
  struct Sent {
    std::int64_t gradients = 0;  ///< reduce-scatter
    std::int64_t student = 0;    ///< all-gather
    std::int64_t teacher = 0;    ///< all-gather
    std::int64_t centring = 0;   ///< all-reduces over prototypes
    std::int64_t norms = 0;      ///< the all-reduce of losses and gradient norms
    std::int64_t total() const noexcept;
  };
  /// Floating-point operations of the matrix products for one image, a multiplication and an addition counted as two.
  struct Work {
    double patch_embedding = 0, qkv = 0, attention = 0, projection = 0, feed_forward = 0, heads = 0, prototypes = 0;
    double total() const noexcept;
  };

  int ranks = 1;
  std::int64_t batch_size = 0, images = 0;  ///< an iteration: of all ranks, of one
  std::int64_t iterations = 0;
  std::vector<Unit> units;
  Memory memory;
  Sent sent;
  Work teacher;                       ///< forward
  Work student;                       ///< forward and backward, without what stochastic depth skips
  std::int64_t checkpoint_bytes = 0;  ///< on disk, of one checkpoint over all ranks
  std::int64_t checkpoints = 0;       ///< on disk at most, with the one being written

  std::int64_t parameters() const noexcept;  ///< of one network
};

/// Pure function: the plan of a run on `ranks` ranks; `distilled` is the shape of the frozen teacher where there is
/// one. Masked patches count at their mean for work and their largest number for memory.
Plan plan(const TrainConfig& config, int ranks, const NetworkConfig* distilled = nullptr);

/// The plan as lines for people.
std::string describe(const Plan& plan);

}  // namespace allosaur::train
