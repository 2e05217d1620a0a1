#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// `allosaur inspect SOURCE`: what a source of images holds, by a look at every image.
std::unique_ptr<Job> make_inspect_job();

}  // namespace allosaur::jobs
