#pragma once
#include <memory>

#include "evaluation/evaluate.hpp"
#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Declares the keys `evaluate.*`: what is evaluated, on what, and how.
void declare_evaluate_options(core::Options& options);

/// The part of those keys that says how. Throws core::UsageError naming the key that makes no sense.
evaluation::EvaluateConfig evaluate_config(const core::Options& options, int threads);

/// Local. Throws core::UsageError unless both sets are named or neither, and where they are, unless the view fits a
/// network of this patch size: before work is done whose result could then not be evaluated.
void check_evaluate_options(const core::Options& options, int patch_size);

/// Collective. Evaluates `evaluate.weights` on `evaluate.train` and `evaluate.test` with results in
/// `output`/results/knn.json and linear.json, a line in metrics.jsonl and a table in the log. Where the same weights
/// were evaluated in the same way on the same images before, only prints the table. Features are kept in
/// `output`/features until the results are written, and the probe where it stands; a run that was stopped goes on.
Outcome evaluate(Context& context);

std::unique_ptr<Job> make_evaluate_job();

}  // namespace allosaur::jobs
