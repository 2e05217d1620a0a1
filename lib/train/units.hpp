#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "train/network.hpp"

namespace allosaur::train {

/// Values of the schedules at one iteration.
struct ScheduleValues {
  double lr = 0, weight_decay = 0, momentum = 0, teacher_temperature = 0, last_layer_lr = 0;
};

struct OptimizerConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double clip_grad = 3.0;  ///< largest L2 norm of a sub-module's gradient; 0 = no clipping
  double layerwise_decay = 0.9, patch_embed_lr_mult = 0.2;
};

/// Multipliers of one parameter (facts 2.6).
struct ParameterGroup {
  double lr_mult = 1, wd_mult = 1;
  bool last_layer = false;
};
ParameterGroup parameter_group(const NetworkParameter& parameter, int depth, const OptimizerConfig& config);

/// Student and teacher as flat units, sharded over the ranks of a group.
///
/// A unit's student parameters are views into one flat float32 buffer, its gradients into another; a rank owns 1/W of every
/// unit: its slice of the student buffer *is* its master weights, its slice of the teacher buffer its EMA, and it keeps the
/// Adam moments of that slice only. Bytes a rank and parameter: 12 + 8/W.
/// When backward has filled a unit, its reduce-scatter starts, in one fixed order on all ranks (last unit first), while the
/// next unit is still in backward. After the update the slices of student and teacher are gathered unit by unit.
/// Cost a rank and iteration: reduce-scatter 4P(W-1)/W bytes, two all-gathers of 4P(W-1)/W bytes, P parameters.
class Units {
 public:
  /// Re-seats the parameters of both networks onto the units; their values are kept. The networks must outlive the units.
  Units(comm::Communicator& group, Network& student, Network& teacher, const OptimizerConfig& config,
        at::Device device = at::kCPU);
  ~Units();
  Units(const Units&) = delete;
  Units& operator=(const Units&) = delete;

  /// Collective. Waits for the weights of the last update; call before the next forward.
  void wait_for_weights();
  /// Zeroes the gradients and arms the reduction; then run backward on a loss already divided by the number of ranks.
  void begin_backward();
  /// Collective. Completes the reduction, with zeros for what backward never reached. The rank's gradient slices then hold
  /// the mean over ranks. Returns this rank's part of the squared gradient norm of each sub-module.
  std::array<double, kSubmodules> finish_backward();
  /// AdamW on the student's slices with gradients scaled by `clip` (one factor a sub-module), then
  /// teacher <- m * teacher + (1 - m) * student, then starts gathering both. `step` counts updates from 1.
  void update(const ScheduleValues& values, const std::array<double, kSubmodules>& clip, std::int64_t step);

  /// The four arrays of a unit that a checkpoint holds, as this rank's rows [first, first + n) of `total`.
  struct Slice {
    std::string name;  // "student.backbone.blocks.0", "teacher...", "exp_avg...", "exp_avg_sq..."
    at::Tensor values; // f32 [n], a view: reading into it restores
    std::int64_t first, total;
  };
  std::vector<Slice> slices();
  /// Collective. Gathers student and teacher from restored slices.
  void gather_weights();

  /// Where each teacher parameter lies in its unit.
  struct Place {
    std::string unit, name;
    std::vector<std::int64_t> shape;
    std::int64_t offset;
  };
  std::vector<Place> places() const;
  std::int64_t parameter_count() const;

 private:
  struct Unit;
  void issue_ready();
  void start_gather();

  comm::Communicator& group_;
  OptimizerConfig config_;
  std::vector<std::unique_ptr<Unit>> units_;  // forward order
  std::size_t issued_ = 0;                    // units whose reduction has started, counted from the last
  std::vector<comm::Request> gathers_;
};

}  // namespace allosaur::train
