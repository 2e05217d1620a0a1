#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "comm/communicator.hpp"
#include "core/log.hpp"
#include "train/config.hpp"
#include "train/step.hpp"
#include "train/units.hpp"

namespace allosaur::train {

/// Checkpoints of a run: `checkpoints/<iteration>/state.h5` (index) with one shard a rank, holding for every unit the
/// student, the teacher and both Adam moments in float32, and the state of the trainer. A checkpoint is complete or
/// absent. Any number of ranks can read it, in any precision; with as many as wrote it, a restart is exact.
/// `model::load_backbone` reads the teacher's backbone from the folder.
///
/// One checkpoint at a time is written in the background, from a copy in host memory (16/W bytes a parameter), over a
/// group of its own: a step waits for the copy only.
class Checkpoints {
 public:
  /// Collective over `group` (host memory).
  Checkpoints(comm::Communicator& group, std::filesystem::path directory, core::Log& log);
  /// Waits for what is being written; while an exception unwinds that is not all ranks', for eight seconds at most.
  ~Checkpoints();

  /// Collective. Starts writing the state after `iteration` updates, and removing what `config` does not keep. Waits
  /// first for the one before, and throws on every rank what went wrong with it.
  void save(std::int64_t iteration, const TrainConfig& config, Units& units, TrainerState& state);
  /// Collective. Waits until the last checkpoint is published; throws on every rank what went wrong.
  void finish();
  /// Local. Whether the checkpoint being written has failed already: finish() then throws.
  bool failed() const noexcept;
  /// Collective. Restores the newest checkpoint that is whole and returns its iteration; one that is damaged is named
  /// in the log and the one before is tried. Nothing when there is none; throws core::StorageError when all are
  /// damaged.
  std::optional<std::int64_t> restore(Units& units, TrainerState& state);
  /// Local. Iterations with a published checkpoint, ascending.
  std::vector<std::int64_t> list() const;
  std::filesystem::path folder(std::int64_t iteration) const;

 private:
  struct Writer;

  comm::Communicator& group_;
  std::filesystem::path directory_;
  core::Log& log_;
  std::shared_ptr<Writer> writer_;  // shared with its thread
};

/// Local. Fills both networks, heads included, from a checkpoint of ours, to begin a new run with (the high-resolution
/// phase, say); position embeddings of another grid are resized. Throws core::StorageError naming what does not fit,
/// and core::UsageError when it is of images of other channels.
void start_from_checkpoint(const std::filesystem::path& folder, Network& student, Network& teacher);

/// Local. The teacher of a checkpoint, heads included, in the shape it has there (to distil). Throws
/// core::StorageError.
std::unique_ptr<Network> load_teacher(const std::filesystem::path& folder, bool fast_products);

}  // namespace allosaur::train
