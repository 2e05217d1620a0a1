#pragma once
#include <memory>

#include "evaluation/evaluate.hpp"
#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Declares the keys `evaluate.*`: what is evaluated, on what, and how.
void declare_evaluate_options(core::Options& options);

/// The part of those keys that says how. Throws core::UsageError naming the key that makes no sense.
evaluation::EvaluateConfig evaluate_config(const core::Options& options, int threads);

/// Collective. Evaluates `evaluate.weights` on `evaluate.train` and `evaluate.test` with results in
/// `output`/results/knn.json and linear.json, a line in metrics.jsonl and a table in the log. Where the same weights
/// were evaluated on the same images before, only prints the table.
Outcome evaluate(Context& context);

std::unique_ptr<Job> make_evaluate_job();

}  // namespace allosaur::jobs
