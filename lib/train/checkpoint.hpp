#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "comm/communicator.hpp"
#include "core/log.hpp"
#include "train/config.hpp"
#include "train/step.hpp"
#include "train/units.hpp"

namespace allosaur::train {

/// Checkpoints of a run: `checkpoints/<iteration>/state.h5` (index) with one shard a rank, holding for every unit the
/// student, the teacher and both Adam moments, and the centres. A checkpoint is complete or absent. Any number of ranks can
/// read it; with as many as wrote it, a restart is exact. `model::load_backbone` reads the teacher's backbone from the folder.
class Checkpoints {
 public:
  Checkpoints(comm::Communicator& group, std::filesystem::path directory, core::Log& log);

  /// Collective. Writes the state after `iteration` updates, then removes what `config` does not keep.
  void save(std::int64_t iteration, const TrainConfig& config, Units& units, Centers& centers);
  /// Collective. Restores the newest checkpoint that is whole and returns its iteration; one that is damaged is named in the
  /// log and the one before is tried. Nothing when there is none; throws core::StorageError when all are damaged.
  std::optional<std::int64_t> restore(Units& units, Centers& centers);
  /// Local. Iterations with a published checkpoint, ascending.
  std::vector<std::int64_t> list() const;
  std::filesystem::path folder(std::int64_t iteration) const;

 private:
  void prune(const TrainConfig& config);

  comm::Communicator& group_;
  std::filesystem::path directory_;
  core::Log& log_;
};

}  // namespace allosaur::train
