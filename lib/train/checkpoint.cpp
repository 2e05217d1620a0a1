#include "train/checkpoint.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

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
constexpr const char* kTrainer = "trainer";  // loss scale, steady updates, updates
constexpr const char* kNetwork = "network";  // shape of heads, beside the backbone's
constexpr const char* kRun = "run";          // RunIdentity

using json = nlohmann::json;

std::vector<model::Placement> teacher_layout(const Units& units) {
  std::vector<model::Placement> layout;
  for (const Units::Place& place : units.places())
    layout.push_back({"teacher." + place.unit, place.name, place.shape, place.offset});
  return layout;
}

json head_json(const model::HeadConfig& head) {
  return {{"hidden_dim", head.hidden_dim},
          {"bottleneck_dim", head.bottleneck_dim},
          {"layers", head.layers},
          {"prototypes", head.prototypes}};
}

model::HeadConfig head_config(const json& head, int in_dim) {
  return {.in_dim = in_dim,
          .hidden_dim = head.at("hidden_dim"),
          .bottleneck_dim = head.at("bottleneck_dim"),
          .layers = head.at("layers"),
          .prototypes = head.at("prototypes")};
}

std::string network_text(const NetworkConfig& config) {
  json text{{"dino_head", head_json(config.dino_head)}};
  if (config.separate_ibot_head) text["ibot_head"] = head_json(config.ibot_head);
  return text.dump();
}

std::string to_json(const RunIdentity& run) {
  return json{{"batch_size", run.batch_size}, {"frozen_teacher", run.frozen_teacher}}.dump();
}

/// Nothing when the checkpoint does not say it.
std::optional<RunIdentity> run_of(const io::ShardedReader& reader) {
  if (!reader.has_attribute(kRun)) return std::nullopt;
  const json run = json::parse(reader.text_attribute(kRun));
  return RunIdentity{.batch_size = run.at("batch_size"), .frozen_teacher = run.at("frozen_teacher")};
}

/// Throws core::UsageError when the checkpoint `where` is of another run.
void require_same(const RunIdentity& theirs, const RunIdentity& ours, const std::string& where) {
  if (theirs.batch_size != ours.batch_size)
    throw core::UsageError(
        fmt::format("{} is of a run with {} images an iteration, this one has {}: set "
                    "train.batch_size to {}, or give another output folder.",
                    where, theirs.batch_size, ours.batch_size, theirs.batch_size));
  const auto teacher = [](const RunIdentity& run) {
    return run.frozen_teacher.empty() ? std::string("distils none") : "distils teacher " + run.frozen_teacher;
  };
  if (theirs.frozen_teacher != ours.frozen_teacher)
    throw core::UsageError(
        fmt::format("{} is of a run that {}, this one {}: give the former distillation.checkpoint_path, or "
                    "another output folder.",
                    where, teacher(theirs), teacher(ours)));
}

/// The iteration that a checkpoint folder is named after.
std::optional<std::int64_t> iteration_of(const std::filesystem::path& folder) {
  const std::string name = folder.filename().string();
  std::int64_t iteration = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), iteration);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return iteration;
}

std::vector<std::int64_t> published(const std::filesystem::path& directory) {
  std::vector<std::int64_t> iterations;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::optional<std::int64_t> iteration = iteration_of(entry.path());
    if (iteration && exists(entry.path() / model::kCheckpointFile)) iterations.push_back(*iteration);
  }
  std::ranges::sort(iterations);
  return iterations;
}

std::filesystem::path folder_of(const std::filesystem::path& directory, std::int64_t iteration) {
  return directory / fmt::format("{:07}", iteration);
}

/// Removes the checkpoints that are not kept, and what is left of those that were never published.
void prune(const std::filesystem::path& directory, std::int64_t keep_last, std::int64_t keep_every) {
  const std::vector<std::int64_t> iterations = published(directory);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep_last) < iterations.size(); ++i) {
    const std::int64_t iteration = iterations[i];
    if (iteration == 0 || (keep_every > 0 && iteration % keep_every == 0)) continue;
    const std::filesystem::path folder = folder_of(directory, iteration);
    std::error_code ignored;  // a folder that cannot be removed now is removed next time
    std::filesystem::remove(folder / model::kCheckpointFile, ignored);  // first: no longer a checkpoint
    std::filesystem::remove_all(folder, ignored);
  }
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::optional<std::int64_t> iteration = iteration_of(entry.path());
    if (!iteration || *iteration >= iterations.back() || exists(entry.path() / model::kCheckpointFile)) continue;
    std::error_code ignored;
    std::filesystem::remove_all(entry.path(), ignored);
  }
}

/// Everything of one checkpoint, in host memory.
struct Snapshot {
  std::filesystem::path folder;
  std::vector<std::pair<std::string, at::Tensor>> arrays;
  std::int64_t iteration, keep_last, keep_every;
  std::string backbone, layout, network, run;
};

}  // namespace

/// The thread that writes, and what it shares with the training loop.
struct Checkpoints::Writer {
  Writer(std::unique_ptr<comm::Communicator> own, comm::Watchdog& fed) : group(std::move(own)), watchdog(fed) {}

  std::unique_ptr<comm::Communicator> group;
  comm::Watchdog& watchdog;  // who waits for the writer lives as long as it works
  std::thread thread;
  std::mutex mutex;
  std::condition_variable changed;
  bool busy = false;
  std::exception_ptr error;
  std::atomic<bool> failed = false;

  void write(const Snapshot& snapshot) const {
    comm::coordinate(*group, [&] { core::make_directory(snapshot.folder); });
    io::ShardedWriter writer(*group, snapshot.folder / model::kCheckpointFile);
    comm::coordinate(*group, [&] {
      for (const auto& [name, values] : snapshot.arrays) {
        writer.write(name, values);
        watchdog.feed();
      }
    });
    writer.set_attribute(kIteration, snapshot.iteration);
    writer.set_attribute(model::kVitAttribute, snapshot.backbone);
    writer.set_attribute(model::kLayoutAttribute, snapshot.layout);
    writer.set_attribute(kNetwork, snapshot.network);
    writer.set_attribute(kRun, snapshot.run);
    writer.publish();
    comm::coordinate(*group, [&] {
      if (group->rank() == 0) prune(snapshot.folder.parent_path(), snapshot.keep_last, snapshot.keep_every);
    });
  }

  static void start(const std::shared_ptr<Writer>& self, Snapshot snapshot) {
    self->busy = true;
    self->thread = std::thread([self, snapshot = std::move(snapshot)] {
      std::exception_ptr error;
      try {
        self->write(snapshot);
      } catch (...) {
        error = std::current_exception();
      }
      const std::lock_guard lock(self->mutex);
      self->error = error;
      self->failed = error != nullptr;
      self->busy = false;
      self->changed.notify_all();
    });
  }
};

Checkpoints::Checkpoints(comm::Communicator& group, std::filesystem::path directory, RunIdentity run, core::Log& log,
                         comm::Watchdog& watchdog)
    : group_(group),
      directory_(std::move(directory)),
      run_(std::move(run)),
      log_(log),
      watchdog_(watchdog),
      writer_(std::make_shared<Writer>(group.split(0, group.rank()), watchdog)) {
  comm::coordinate(group_, [&] { core::make_directory(directory_); });
}

Checkpoints::~Checkpoints() {
  if (!writer_->thread.joinable()) return;
  // After an agreed failure every rank comes here, and MPI is finalised soon. After another the job is aborted: then
  // the other ranks may be gone already, and writing would never end.
  if (std::uncaught_exceptions() > 0 && !group_.host().agreed_failure()) {
    std::unique_lock lock(writer_->mutex);
    if (!writer_->changed.wait_for(lock, std::chrono::seconds(8), [&] { return !writer_->busy; })) {
      writer_->thread.detach();
      return;
    }
  }
  writer_->thread.join();
}

bool Checkpoints::failed() const noexcept {
  return writer_->failed;
}

void Checkpoints::finish() {
  if (!writer_->thread.joinable()) return;
  writer_->thread.join();
  const std::exception_ptr error = std::exchange(writer_->error, nullptr);
  writer_->failed = false;
  comm::coordinate(group_, [&] {
    if (!error) return;
    try {
      std::rethrow_exception(error);
    } catch (const core::PeerError&) {
      // The rank where it went wrong says so itself.
    }
  });
  if (error) std::rethrow_exception(error);
}

std::filesystem::path Checkpoints::folder(std::int64_t iteration) const {
  return folder_of(directory_, iteration);
}

std::vector<std::int64_t> Checkpoints::list() const {
  return published(directory_);
}

void Checkpoints::save(std::int64_t iteration, const TrainConfig& config, Units& units, TrainerState& state) {
  finish();
  Snapshot snapshot{folder(iteration),
                    {},
                    iteration,
                    config.keep_last,
                    config.keep_every,
                    model::to_json(config.network.backbone),
                    model::to_json(teacher_layout(units)),
                    network_text(config.network),
                    to_json(run_)};
  for (const Units::Slice& slice : units.slices())
    snapshot.arrays.emplace_back(slice.name, slice.values.to(at::kCPU, at::kFloat, false, /*copy=*/true).contiguous());
  const auto alike = [&](const char* name, const at::Tensor& values) {  // on all ranks: rank 0 writes it
    const at::Tensor host = values.to(at::kCPU);
    snapshot.arrays.emplace_back(name, group_.rank() == 0 ? host : host.narrow(0, 0, 0));
  };
  alike(kDinoCenter, state.dino.state());
  alike(kIbotCenter, state.ibot.state());
  alike(kTrainer, at::tensor({state.loss_scale, static_cast<double>(state.steady), static_cast<double>(state.updates)},
                             at::kDouble));
  Writer::start(writer_, std::move(snapshot));
}

std::vector<std::int64_t> Checkpoints::agreed_list() {
  std::vector<std::int64_t> iterations = list();
  // One rank may see a folder that another, on a slower file system, does not see yet: rank 0's list counts.
  std::int64_t count = static_cast<std::int64_t>(iterations.size());
  group_.broadcast(std::span<std::int64_t>(&count, 1), 0);
  iterations.resize(static_cast<std::size_t>(count));
  group_.broadcast(std::span<std::int64_t>(iterations), 0);
  return iterations;
}

bool Checkpoints::any() {
  return !agreed_list().empty();
}

std::optional<std::int64_t> Checkpoints::restore(Units& units, TrainerState& state) {
  const at::NoGradGuard no_grad;
  const std::vector<std::int64_t> iterations = agreed_list();
  std::string last_problem;
  for (auto iteration = iterations.rbegin(); iteration != iterations.rend(); ++iteration) {
    try {
      comm::coordinate(group_, [&] {
        const io::ShardedReader reader(folder(*iteration) / model::kCheckpointFile);
        if (reader.text_attribute(model::kLayoutAttribute) != model::to_json(teacher_layout(units)))
          throw core::StorageError(fmt::format("{} is of another network.", folder(*iteration).string()));
        if (const auto run = run_of(reader)) require_same(*run, run_, folder(*iteration).string());
        for (const Units::Slice& slice : units.slices()) {
          if (reader.shape(slice.name) != std::vector<std::int64_t>{slice.total})
            throw core::StorageError(fmt::format("{} holds {} in another shape: it is of another network.",
                                                 folder(*iteration).string(), slice.name));
          at::Tensor values = slice.values;
          if (values.numel() > 0) values.copy_(reader.read(slice.name, slice.first, values.numel()));
          watchdog_.feed();
        }
        state.dino.restore(reader.read(kDinoCenter));
        state.ibot.restore(reader.read(kIbotCenter));
        const at::Tensor trainer = reader.read(kTrainer);
        state.loss_scale = trainer[0].item<double>();
        state.steady = trainer[1].item<std::int64_t>();
        state.updates = trainer[2].item<std::int64_t>();
        if (reader.integer_attribute(kIteration) != *iteration)
          throw core::StorageError(
              fmt::format("{} says that it is of another iteration.", folder(*iteration).string()));
      });
      units.gather_weights();
      return *iteration;
    } catch (const core::UsageError&) {
      throw;  // the checkpoint is whole, and of another run
    } catch (const core::Error& error) {
      last_problem = error.what();
      log_.warning("The checkpoint of iteration {} cannot be used: {} Trying the one before.", *iteration,
                   error.what());
    }
  }
  comm::coordinate(group_, [&] {
    if (!iterations.empty())
      throw core::StorageError(
          fmt::format("No checkpoint in {} can be read; the oldest: {} Remove them to start afresh.",
                      directory_.string(), last_problem));
  });
  return std::nullopt;
}

namespace {

void fill(Network& network, io::NamedTensors tensors, const std::string& where) {
  std::vector<model::Parameter> parameters;
  for (const NetworkParameter& p : network.parameters()) {
    parameters.push_back(p.parameter);
    parameters.back().name = p.name();
  }
  model::resize_positions(tensors, "backbone.", network.config().backbone);
  model::assign(parameters, tensors, where);
}

}  // namespace

std::optional<std::int64_t> batch_size_of_run(const std::filesystem::path& directory) {
  if (!exists(directory)) return std::nullopt;
  const std::vector<std::int64_t> iterations = published(directory);
  for (auto iteration = iterations.rbegin(); iteration != iterations.rend(); ++iteration) {
    try {
      const auto run = run_of(io::ShardedReader(folder_of(directory, *iteration) / model::kCheckpointFile));
      if (run) return run->batch_size;
    } catch (const core::StorageError&) {
      // Damaged: restore() says so, and takes the one before too.
    }
  }
  return std::nullopt;
}

model::VitConfig start_from_checkpoint(const std::filesystem::path& folder, Network& student, Network& teacher) {
  const io::ShardedReader reader = model::open_checkpoint(folder);
  const model::VitConfig config = model::vit_from_json(reader.text_attribute(model::kVitAttribute));
  model::require_channels(config, student.config().backbone.in_channels, folder.string());
  fill(student, model::checkpoint_tensors(reader, "student"), folder.string());
  fill(teacher, model::checkpoint_tensors(reader, "teacher"), folder.string());
  return config;
}

namespace {

NetworkConfig network_of(const io::ShardedReader& reader) {
  const json heads = json::parse(reader.text_attribute(kNetwork));
  NetworkConfig config;
  config.backbone = model::vit_from_json(reader.text_attribute(model::kVitAttribute));
  config.dino_head = config.ibot_head = head_config(heads.at("dino_head"), config.backbone.embed_dim);
  config.separate_ibot_head = heads.contains("ibot_head");
  if (config.separate_ibot_head) config.ibot_head = head_config(heads.at("ibot_head"), config.backbone.embed_dim);
  return config;
}

}  // namespace

NetworkConfig network_of_checkpoint(const std::filesystem::path& folder) {
  return network_of(model::open_checkpoint(folder));
}

std::unique_ptr<Network> load_teacher(const std::filesystem::path& folder, bool fast_products) {
  const io::ShardedReader reader = model::open_checkpoint(folder);
  NetworkConfig config = network_of(reader);
  config.fast_products = fast_products;
  auto network = std::make_unique<Network>(config);
  fill(*network, model::checkpoint_tensors(reader, "teacher"), folder.string());
  return network;
}

}  // namespace allosaur::train
