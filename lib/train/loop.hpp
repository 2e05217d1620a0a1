#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "core/log.hpp"
#include "data/dataset.hpp"
#include "train/checkpoint.hpp"
#include "train/config.hpp"

namespace allosaur::train {

/// What the loop needs from outside.
struct LoopContext {
  comm::Communicator& group;         ///< host memory
  comm::Communicator& device_group;  ///< memory of the device (the same group on CPUs)
  core::Log& log;
  core::MetricsLog* metrics;  ///< rank 0 only
  comm::StopSignal& stop;
  comm::Watchdog& watchdog;
  std::filesystem::path directory;   ///< of the run; checkpoints go below it
  std::int64_t evaluate_period = 0;  ///< iterations between calls of evaluate; 0 = never
  /// Collective. Called with the teacher before the first iteration of a fresh run, at multiples of the period and at
  /// the end. False, on all ranks, where it was stopped on request: the run stops too, and evaluates when it goes on.
  std::function<bool(std::int64_t iteration, const model::VisionTransformer& teacher)> evaluate = {};
  /// Collective. Whether evaluate() was done with an iteration in an earlier attempt. Both are needed with a period.
  std::function<bool(std::int64_t iteration)> evaluated = {};
};

struct LoopResult {
  std::filesystem::path checkpoint;  ///< folder of the last one written or restored
  bool preempted = false;            ///< stopped on request, with a checkpoint
  bool stopped_before = false;       ///< nothing was done: an earlier attempt has reached train.stop_at
  std::int64_t iterations = 0;       ///< done in all
  std::int64_t distinct_seen = 0;    ///< files asked for on this rank
};

/// Collective. Pretrains from the newest checkpoint, or from the start, to the end of the run or until asked to stop.
LoopResult pretrain(LoopContext& context, const TrainConfig& config, std::shared_ptr<const data::Dataset> dataset);

}  // namespace allosaur::train
