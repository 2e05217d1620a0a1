#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Declares the keys `demo.*`.
void declare_demo_options(core::Options& options);

/// Collective. Makes the demo data (data/demo_set.hpp) in `output`; a finished set is left as it is.
Outcome demo(Context& context);

std::unique_ptr<Job> make_demo_job();

}  // namespace allosaur::jobs
