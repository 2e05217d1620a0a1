#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// `allosaur pack`: turns any image source into packed shards (data/packed.hpp) in the output folder, one a rank.
std::unique_ptr<Job> make_pack_job();

}  // namespace allosaur::jobs
