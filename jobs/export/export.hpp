#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// `allosaur export`: the backbone of a checkpoint's teacher, or of a file of weights, as a safetensors file with the
/// official names.
std::unique_ptr<Job> make_export_job();

}  // namespace allosaur::jobs
