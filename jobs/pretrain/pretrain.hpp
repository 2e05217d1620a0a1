#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "jobs/job.hpp"
#include "train/config.hpp"

namespace allosaur::jobs {

/// Declares the keys of pretraining (official names: `train.*`, `student.*`, `dino.*`, `ibot.*`, `optim.*`, ...) and
/// `evaluation.eval_period_iterations`. The keys `evaluate.*` must be declared too: they say how it is evaluated on the
/// way.
void declare_pretrain_options(core::Options& options);

/// Local. What the options say of the training on this many ranks, and of its evaluation on the way; `batch_size` as
/// train::read_config() has it. Throws core::UsageError for options that make no sense together or on these ranks,
/// without looking at any file.
train::TrainConfig pretrain_config(const core::Options& options, int ranks,
                                   std::optional<std::int64_t> batch_size = {});

/// Collective. Pretrains on `train.dataset_path` into `output`; continues where its checkpoints say; a run that was
/// started on other images is refused (core::UsageError). At the end the teacher's backbone stands in
/// `output`/teacher.safetensors; complete without that file: an earlier attempt stopped at train.stop_at.
Outcome pretrain(Context& context);

/// Name of the weights that a finished pretraining leaves in its output directory.
inline constexpr const char* kTeacherFile = "teacher.safetensors";

/// Name, in `output`/results, of the picture of losses and accuracies.
inline constexpr const char* kCurvesFile = "curves.svg";

std::unique_ptr<Job> make_pretrain_job();

}  // namespace allosaur::jobs
