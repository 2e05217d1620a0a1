#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "loss/cross_entropy.hpp"
#include "train/network.hpp"
#include "train/units.hpp"

namespace allosaur::train {

enum class Centering : std::uint8_t { softmax, sinkhorn_knopp };

struct ObjectiveConfig {
  double dino_weight = 1.0, ibot_weight = 1.0, koleo_weight = 0.1;
  double student_temperature = 0.1;
  Centering centering = Centering::softmax;
};

/// What one iteration works on: everything random or scheduled is an argument, so that recorded iterations can be replayed.
/// n images on this rank, L local crops.
struct StepInput {
  at::Tensor global_crops;  // f32 [2n, 3, S, S], crop-major
  at::Tensor local_crops;   // f32 [L * n, 3, s, s], crop-major, or undefined
  at::Tensor masks;         // bool [2n, N]
  std::vector<at::Tensor> kept_global, kept_local;  ///< see model::VitInput::kept; empty without stochastic depth
  std::int64_t group = 1;      ///< images a group (KoLeo, iBOT centre); divides n
  std::int64_t iteration = 0;  ///< 0-based, for messages
  std::int64_t update = 1;     ///< number of this update, from 1 (AdamW's bias correction)
  ScheduleValues schedule;
  bool stop_requested = false;  ///< this rank's wish; reduced with the losses
  bool statistics = false;      ///< also compute StepResult::targets and feature_rank
};

/// What all ranks know after an iteration: means over ranks.
struct StepResult {
  double dino_local = 0, dino_global = 0, ibot = 0, koleo = 0;  ///< unweighted, as they enter the total
  double total = 0;                                             ///< what is differentiated
  std::array<double, kSubmodules> gradient_norm{};              ///< before clipping
  bool stop_requested = false;                                  ///< by any rank
  std::optional<loss::TargetStatistics> targets;                ///< of the DINO targets
  double feature_rank = 0;  ///< exp of the entropy of the teacher class tokens' normalised squared singular values
};

/// The training state that is the same on all ranks and not part of the units.
struct Centers {
  loss::Center dino, ibot;
};

/// One iteration of DINOv2 pretraining (facts 2.1): teacher forward, student forward, losses, backward with overlapped
/// reduction, clip, AdamW, EMA.
class Trainer {
 public:
  Trainer(comm::Communicator& group, Network& student, Network& teacher, Units& units, const ObjectiveConfig& objective,
          const OptimizerConfig& optimizer);

  /// Collective. Throws core::NumericalError on every rank, before any weight has changed, when a loss or gradient is not
  /// finite.
  StepResult run(const StepInput& input);

  Centers& centers() noexcept { return centers_; }

 private:
  struct TeacherTargets;
  TeacherTargets teacher_targets(const StepInput& input, const at::Tensor& masked);

  comm::Communicator& group_;
  Network& student_;
  Network& teacher_;
  Units& units_;
  ObjectiveConfig objective_;
  OptimizerConfig optimizer_;
  Centers centers_;
};

/// The crops of one resolution on this rank: `images` images in groups of `group`, each with `crops` crops, crop-major.
struct GroupedRows {
  std::int64_t images, crops, group;
  std::int64_t first_group;  ///< number of this rank's first group, counted over all iterations and ranks
};

/// The rows that stochastic depth keeps in every branch: of each group's rows max(1, floor(rows * (1 - rate of the block))) at
/// random, a pure function of (seed, group). Branches in the order of model::VitInput::kept; `stream` (0 or 1) tells the
/// resolutions apart. Empty when all rates are 0.
std::vector<at::Tensor> kept_rows(const std::vector<double>& rates, const GroupedRows& rows, std::uint64_t seed,
                                  std::uint32_t stream);

}  // namespace allosaur::train
