#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// All phases one after the other, each below `output` and each from where its files say it stopped: demo (optional),
/// curate, pretrain, evaluate (the network at initialisation, and pretrained), summary.
std::unique_ptr<Job> make_pipeline_job();

}  // namespace allosaur::jobs
