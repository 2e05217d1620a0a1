#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Declares the keys `curate.*`: what is curated, and how.
void declare_curate_options(core::Options& options);

/// Local. Throws core::UsageError for options that make no sense together, without looking at any file.
void check_curate_options(const core::Options& options);

/// Collective. Curates `curate.pool` around `curate.curated` (DINOv2, section 3): removes copies within the pool, then
/// copies of curated and reference images; retrieves the pool images nearest to the curated ones; writes both as packed
/// images to `output`/curated, with what is known of each image in `output`/results/decisions.h5 and counts in
/// results/curate.json. A finished run only prints its summary; an interrupted one continues from the features it has
/// written.
Outcome curate(Context& context);

/// Name, below the output directory, of the packed images that a finished run leaves.
inline constexpr const char* kCuratedFolder = "curated";

/// Names, in `output`/results, of its pictures: images that were removed beside those that stay, and images that came
/// in beside the curated ones that they are like. There is none where there is nothing to show.
inline constexpr const char *kDuplicatesSheet = "duplicates.png", *kRetrievedSheet = "retrieved.png";

std::unique_ptr<Job> make_curate_job();

}  // namespace allosaur::jobs
