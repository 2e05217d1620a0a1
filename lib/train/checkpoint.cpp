#include "train/checkpoint.hpp"

#include <algorithm>
#include <charconv>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "io/sharded_array.hpp"
#include "model/weights.hpp"

namespace allosaur::train {

namespace {
constexpr const char* kIteration = "iteration";
constexpr const char* kDinoCenter = "dino_center";
constexpr const char* kIbotCenter = "ibot_center";

std::vector<model::Placement> teacher_layout(const Units& units) {
  std::vector<model::Placement> layout;
  for (const Units::Place& place : units.places())
    layout.push_back({"teacher." + place.unit, place.name, place.shape, place.offset});
  return layout;
}
}  // namespace

Checkpoints::Checkpoints(comm::Communicator& group, std::filesystem::path directory, core::Log& log)
    : group_(group), directory_(std::move(directory)), log_(log) {
  comm::coordinate(group_, [&] { core::make_directory(directory_); });
}

std::filesystem::path Checkpoints::folder(std::int64_t iteration) const { return directory_ / fmt::format("{:07}", iteration); }

std::vector<std::int64_t> Checkpoints::list() const {
  std::vector<std::int64_t> iterations;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    const std::string name = entry.path().filename().string();
    std::int64_t iteration = 0;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), iteration);
    if (error == std::errc() && end == name.data() + name.size() && exists(entry.path() / model::kCheckpointFile))
      iterations.push_back(iteration);
  }
  std::ranges::sort(iterations);
  return iterations;
}

void Checkpoints::save(std::int64_t iteration, const TrainConfig& config, Units& units, Centers& centers) {
  comm::coordinate(group_, [&] { core::make_directory(folder(iteration)); });
  io::ShardedWriter writer(group_, folder(iteration) / model::kCheckpointFile);
  comm::coordinate(group_, [&] {
    for (const Units::Slice& slice : units.slices()) writer.write(slice.name, slice.values.to(at::kCPU).contiguous());
    for (const auto& [name, center] : {std::pair{kDinoCenter, &centers.dino}, std::pair{kIbotCenter, &centers.ibot}}) {
      const at::Tensor state = center->state().to(at::kCPU);  // the same on all ranks: rank 0 writes it
      writer.write(name, group_.rank() == 0 ? state : state.narrow(0, 0, 0));
    }
  });
  writer.set_attribute(kIteration, iteration);
  writer.set_attribute(model::kVitAttribute, model::to_json(config.network.backbone));
  writer.set_attribute(model::kLayoutAttribute, model::to_json(teacher_layout(units)));
  writer.publish();
  prune(config);
}

void Checkpoints::prune(const TrainConfig& config) {
  comm::coordinate(group_, [&] {
    if (group_.rank() != 0) return;
    const std::vector<std::int64_t> iterations = list();
    for (std::size_t i = 0; i + static_cast<std::size_t>(config.keep_last) < iterations.size(); ++i) {
      const std::int64_t iteration = iterations[i];
      if (iteration == 0 || (config.keep_every > 0 && iteration % config.keep_every == 0)) continue;
      std::error_code ignored;  // a folder that cannot be removed now is removed next time
      std::filesystem::remove(folder(iteration) / model::kCheckpointFile, ignored);  // first: no longer a checkpoint
      std::filesystem::remove_all(folder(iteration), ignored);
    }
  });
}

std::optional<std::int64_t> Checkpoints::restore(Units& units, Centers& centers) {
  const at::NoGradGuard no_grad;
  std::vector<std::int64_t> iterations = list();
  // One rank may see a folder that another, on a slower file system, does not see yet: rank 0's list counts.
  std::int64_t count = static_cast<std::int64_t>(iterations.size());
  group_.broadcast(std::span<std::int64_t>(&count, 1), 0);
  iterations.resize(static_cast<std::size_t>(count));
  group_.broadcast(std::span<std::int64_t>(iterations), 0);
  std::string last_problem;
  for (auto iteration = iterations.rbegin(); iteration != iterations.rend(); ++iteration) {
    try {
      comm::coordinate(group_, [&] {
        const io::ShardedReader reader(folder(*iteration) / model::kCheckpointFile);
        for (const Units::Slice& slice : units.slices()) {
          if (reader.shape(slice.name) != std::vector<std::int64_t>{slice.total})
            throw core::StorageError(fmt::format("{} holds {} in another shape: it is of another network.",
                                                 folder(*iteration).string(), slice.name));
          at::Tensor values = slice.values;
          if (values.numel() > 0) values.copy_(reader.read(slice.name, slice.first, values.numel()));
        }
        centers.dino.restore(reader.read(kDinoCenter));
        centers.ibot.restore(reader.read(kIbotCenter));
        if (reader.integer_attribute(kIteration) != *iteration)
          throw core::StorageError(fmt::format("{} says that it is of another iteration.", folder(*iteration).string()));
      });
      units.gather_weights();
      return *iteration;
    } catch (const core::Error& error) {
      last_problem = error.what();
      log_.warning("The checkpoint of iteration {} cannot be used: {} Trying the one before.", *iteration, error.what());
    }
  }
  if (!iterations.empty())
    throw core::StorageError(fmt::format("No checkpoint in {} can be read; the oldest: {} Remove them to start afresh.",
                                         directory_.string(), last_problem));
  return std::nullopt;
}

}  // namespace allosaur::train
