#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "core/log.hpp"
#include "train/config.hpp"
#include "train/step.hpp"
#include "train/units.hpp"

namespace allosaur::train {

/// What a run computes, where its options do not say it in full. A checkpoint of a run with another is not continued.
struct RunIdentity {
  std::int64_t batch_size = 0;  ///< images an iteration
  std::string frozen_teacher;   ///< fingerprint of the network that is distilled; empty: the teacher is the EMA
};

/// Checkpoints of a run: `checkpoints/<iteration>/state.h5` (index) with one shard a rank, holding for every unit the
/// student, the teacher and both Adam moments in float32, and the state of the trainer. A checkpoint is complete or
/// absent. Any number of ranks can read it, in any precision; with as many as wrote it, a restart is exact.
/// `model::load_backbone` reads the teacher's backbone from the folder.
///
/// One checkpoint at a time is written in the background, from a copy in host memory (16/W bytes a parameter), over a
/// group of its own: a step waits for the copy only.
class Checkpoints {
 public:
  /// Collective over `group` (host memory). `watchdog` is fed with every array that is read or written.
  Checkpoints(comm::Communicator& group, std::filesystem::path directory, RunIdentity run, core::Log& log,
              comm::Watchdog& watchdog);
  /// Waits for what is being written; while an exception unwinds that is not all ranks', for eight seconds at most.
  ~Checkpoints();

  /// Collective. Starts writing the state after `iteration` updates, and removing what `config` does not keep. Waits
  /// first for the one before, and throws on every rank what went wrong with it.
  void save(std::int64_t iteration, const TrainConfig& config, Units& units, TrainerState& state);
  /// Collective. Waits until the last checkpoint is published; throws on every rank what went wrong.
  void finish();
  /// Local. Whether the checkpoint being written has failed already: finish() then throws.
  bool failed() const noexcept;
  /// Collective. Whether there is a checkpoint: restore() then fills everything, or throws.
  bool any();
  /// Collective. Restores the newest checkpoint that is whole and returns its iteration; one that is damaged is named
  /// in the log and the one before is tried. Nothing when there is none; throws core::StorageError when all are
  /// damaged, and core::UsageError when they are of a run with another identity.
  std::optional<std::int64_t> restore(Units& units, TrainerState& state);
  /// Local. Iterations with a published checkpoint, ascending.
  std::vector<std::int64_t> list() const;
  std::filesystem::path folder(std::int64_t iteration) const;

 private:
  struct Writer;
  std::vector<std::int64_t> agreed_list();

  comm::Communicator& group_;
  std::filesystem::path directory_;
  RunIdentity run_;
  core::Log& log_;
  comm::Watchdog& watchdog_;
  std::shared_ptr<Writer> writer_;  // shared with its thread
};

/// Local. Images an iteration of the run whose checkpoints are in `directory`, by the newest that can be opened;
/// nothing where there is none.
std::optional<std::int64_t> batch_size_of_run(const std::filesystem::path& directory);

/// Local. Fills both networks, heads included, from a checkpoint of ours, to begin a new run with (the high-resolution
/// phase, say); position embeddings of another grid are resized. Returns the shape of the checkpoint's backbone. Throws
/// core::StorageError naming what does not fit, and core::UsageError when it is of images of other channels.
model::VitConfig start_from_checkpoint(const std::filesystem::path& folder, Network& student, Network& teacher);

/// Local. The shape of a checkpoint's networks. Throws core::StorageError.
NetworkConfig network_of_checkpoint(const std::filesystem::path& folder);

/// Local. The teacher of a checkpoint, heads included, in the shape it has there (to distil). Throws
/// core::StorageError.
std::unique_ptr<Network> load_teacher(const std::filesystem::path& folder, bool fast_products);

}  // namespace allosaur::train
