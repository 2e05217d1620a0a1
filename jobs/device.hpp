#pragma once
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "jobs/job.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::jobs {

/// Declares `key`, which chooses where a job computes: cpu, cuda or auto.
void declare_device_option(core::Options& options, const std::string& key);

/// Where a job computes, and the group for tensors that live there.
class ComputeDevice {
 public:
  /// Collective. The option `key` is cpu, cuda (a GPU a rank; core::UsageError where there is none) or auto (cuda where
  /// every rank has one, else cpu). The log says what was taken, and the watchdog looks for failures of the GPUs'
  /// group.
  ComputeDevice(Context& context, const std::string& key);
  ~ComputeDevice();
  ComputeDevice(const ComputeDevice&) = delete;
  ComputeDevice& operator=(const ComputeDevice&) = delete;

  at::Device device() const noexcept { return device_; }
  /// Local. Moves the weights of a backbone there.
  void move(model::VisionTransformer& backbone) const;
  comm::Communicator& group() noexcept { return group_ ? *group_ : world_; }

 private:
  comm::Communicator& world_;
  comm::Watchdog& watchdog_;
  at::Device device_ = at::kCPU;
  std::unique_ptr<comm::Communicator> group_;
};

}  // namespace allosaur::jobs
