#pragma once
#include <memory>

#include "jobs/job.hpp"

namespace allosaur::jobs {

/// `allosaur export`: a checkpoint's teacher backbone as a safetensors file with the official names.
std::unique_ptr<Job> make_export_job();

}  // namespace allosaur::jobs
