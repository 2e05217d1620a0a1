#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// `allosaur pack`: turns any image source into packed images (data/packed.hpp) in the output folder, part by part; a
/// restart, with any number of ranks, goes on after the last finished part.
std::unique_ptr<Job> make_pack_job();

}  // namespace allosaur::jobs
