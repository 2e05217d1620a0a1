#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "loss/cross_entropy.hpp"
#include "train/measure.hpp"
#include "train/network.hpp"
#include "train/units.hpp"

namespace allosaur::train {

enum class Centering : std::uint8_t { softmax, sinkhorn_knopp };

struct ObjectiveConfig {
  double dino_weight = 1.0, ibot_weight = 1.0, koleo_weight = 0.1;
  double student_temperature = 0.1;
  Centering centering = Centering::softmax;
  bool mask_input =
      true;  ///< false (distillation): the student sees all patches; `masks` only choose what iBOT compares
};

/// A share of an iteration's images that passes through the student at once: n images, L local crops.
struct MicroBatch {
  at::Tensor global_crops;                          // [2n, C, S, S], crop-major
  at::Tensor local_crops;                           // [L * n, C, s, s], crop-major, or undefined
  at::Tensor masks;                                 // bool [2n, N], in host memory
  std::vector<at::Tensor> kept_global, kept_local;  ///< see model::VitInput::kept; empty without stochastic depth
};

/// What one iteration works on: everything random or scheduled is an argument, so that recorded iterations can be
/// replayed.
struct StepInput {
  std::vector<MicroBatch> batches;  ///< several: gradients accumulate, and the iteration is that of all images at once
  std::int64_t group = 1;           ///< images a group (KoLeo, iBOT centre); divides every micro-batch
  ScheduleValues schedule;
  bool stop_requested = false;  ///< this rank's wish; reduced with the losses
  bool statistics = false;      ///< also compute StepResult::targets and feature_rank
};

enum class StepVerdict : std::uint8_t {
  updated,  ///< all is finite
  /// Float16 gradients were not finite: no update of the student, and the loss scale is halved. As in the published
  /// code the EMA and the centres move all the same.
  overflowed,
  not_finite,  ///< a loss or gradient is not finite: no update, the state is as it was
};

/// What all ranks know after an iteration: means over ranks.
struct StepResult {
  StepVerdict verdict = StepVerdict::updated;
  double dino_local = 0, dino_global = 0, ibot = 0, koleo = 0;  ///< unweighted, as they enter the total
  double total = 0;                                             ///< what is differentiated
  std::array<double, kSubmodules> gradient_norm{};              ///< before clipping
  double loss_scale = 1;                                        ///< that this iteration used
  bool stop_requested = false;                                  ///< by any rank
  std::optional<loss::TargetStatistics> targets;                ///< of the DINO targets
  double feature_rank = 0;  ///< exp of the entropy of the teacher class tokens' normalised squared singular values
  StepSeconds seconds;      ///< of this rank; on a GPU, `update` is that of the iteration before
};

/// The training state that is the same on all ranks and not part of the units.
struct TrainerState {
  loss::Center dino, ibot;
  double loss_scale = 1;     ///< of float16, else 1
  std::int64_t steady = 0;   ///< updates since the scale last changed
  std::int64_t updates = 0;  ///< in all; AdamW's bias correction counts them
};

/// One iteration of DINOv2 pretraining (dinov2/train/ssl_meta_arch.py, forward_backward): teacher forward, student
/// forward, losses, backward with overlapped reduction, clip, AdamW, EMA. A device is waited for once, between backward
/// and update, where losses and gradient norms come to the host; what follows from the masks is computed there.
class Trainer {
 public:
  /// `data` takes memory of the networks' device; `control` host memory (on CPUs they are the same). The teacher is
  /// the EMA in `units`, or a frozen network.
  Trainer(comm::Communicator& control, comm::Communicator& data, Network& student, Network& teacher, Units& units,
          const ObjectiveConfig& objective, const UnitsConfig& config);

  /// Collective.
  StepResult run(const StepInput& input);

  TrainerState& state() noexcept { return state_; }

 private:
  struct TeacherTargets;
  struct Losses;
  TeacherTargets teacher_targets(const StepInput& input);
  Losses student_losses(const MicroBatch& batch, const at::Tensor& masked, TeacherTargets& teacher, std::int64_t group);

  comm::Communicator& control_;
  comm::Communicator& data_;
  Network& student_;
  Network& teacher_;
  Units& units_;
  ObjectiveConfig objective_;
  UnitsConfig config_;
  TrainerState state_;
  SectionClock clock_;
};

/// The crops of one resolution on this rank: `images` images in groups of `group`, each with `crops` crops, crop-major.
struct GroupedRows {
  std::int64_t images, crops, group;
  std::int64_t first_group;  ///< number of this rank's first group, counted over all iterations and ranks
};

/// The rows that stochastic depth keeps in every branch: of each group's rows max(1, floor(rows * (1 - rate of the
/// block))) at random, a pure function of (seed, group). Branches in the order of model::VitInput::kept; `stream` (0 or
/// 1) tells the resolutions apart. Undefined for a block of rate 0, empty when all rates are 0.
std::vector<at::Tensor> kept_rows(const std::vector<double>& rates, const GroupedRows& rows, std::uint64_t seed,
                                  std::uint32_t stream);

}  // namespace allosaur::train
