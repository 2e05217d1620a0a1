#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/options.hpp"
#include "data/loader.hpp"
#include "train/network.hpp"
#include "train/step.hpp"
#include "train/units.hpp"

namespace allosaur::train {

/// Everything that decides what a pretraining run computes.
struct TrainConfig {
  NetworkConfig network;
  std::vector<double> drop_path_rates;  ///< of each block, student only
  std::string pretrained_weights;       ///< student backbone to start from; empty: initial values
  std::string start_from;               ///< checkpoint to start from, heads and teacher included; empty: none
  std::string distilled_from;           ///< checkpoint whose teacher is distilled, frozen; empty: none
  ObjectiveConfig objective;
  UnitsConfig units;
  data::LoaderConfig loader;  ///< its workers and rejection limit are set by the job
  std::uint64_t seed = 0;
  std::int64_t batch_size = 64;   ///< images an iteration, over all ranks
  std::int64_t group = 64;        ///< images a group (train.batch_size_per_gpu)
  std::int64_t micro_batch = 64;  ///< images of a rank that pass through the student at once
  std::int64_t iterations = 0;    ///< of the whole run: the length of the schedules
  std::int64_t stop_at = 0;       ///< stop after this iteration, with a checkpoint; 0 = at the end
  double lr = 0;                  ///< after the scaling rule
  double min_lr = 1e-6, weight_decay = 0.04, weight_decay_end = 0.4;
  double momentum = 0.992, final_momentum = 1.0;
  double warmup_teacher_temperature = 0.04, teacher_temperature = 0.07;
  std::int64_t warmup_iterations = 0, freeze_last_layer_iterations = 0, warmup_teacher_temperature_iterations = 0;
  std::int64_t checkpoint_period = 0, keep_last = 3, keep_every = 0, log_period = 10;
  std::int64_t max_bad_iterations = 3;  ///< in a row that may be skipped
};

/// Declares the keys of pretraining, with the names and defaults of the official configuration; those of pixels
/// (data::declare_pixel_options) are declared apart, since other jobs have them too.
void declare_options(core::Options& options);

/// Reads them for a run of `ranks` ranks. `former_batch_size`: that of the run to be continued (batch_size_of_run()),
/// if there is one; it stands in for a train.batch_size of 0. Throws core::UsageError when they contradict each other
/// (image size and patch size, batch, ranks and groups, ...).
TrainConfig read_config(const core::Options& options, int ranks,
                        std::optional<std::int64_t> former_batch_size = std::nullopt);

/// The schedules' values at a 0-based iteration (dinov2/train/train.py, build_schedulers).
ScheduleValues schedule_at(const TrainConfig& config, std::int64_t iteration);

}  // namespace allosaur::train
