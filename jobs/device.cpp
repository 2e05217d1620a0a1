#include "jobs/device.hpp"

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#ifdef ALLOSAUR_HAVE_CUDA
#include <ATen/Context.h>
#include <c10/cuda/CUDAFunctions.h>

#include "comm/nccl_communicator.hpp"
#endif

namespace allosaur::jobs {

void declare_device_option(core::Options& options, const std::string& key) {
  options.add(key, "auto", "cpu, cuda (a GPU a rank), or auto: cuda where every rank has one", core::OptionKind::free)
      .one_of({"auto", "cpu", "cuda"});
}

void ComputeDevice::move(model::VisionTransformer& backbone) const {
  for (const model::Parameter& parameter : backbone.parameters()) *parameter.tensor = parameter.tensor->to(device_);
}

ComputeDevice::ComputeDevice(Context& context, const std::string& key)
    : world_(context.world), watchdog_(context.watchdog) {
  const std::string& choice = context.options.text(key);
  if (choice == "cpu") return;
#ifdef ALLOSAUR_HAVE_CUDA
  const char* lack = "not every rank finds a GPU of its own";
  const int devices = c10::cuda::device_count();
#else
  const char* lack = "this program is built without support for GPUs";
  const int devices = 0;
#endif
  const bool missing = context.node_rank >= devices;
  if (world_.max(missing ? 1 : 0) > 0) {
    comm::coordinate(world_, [&] {
      if (choice == "cuda" && missing)
        throw core::UsageError(
            fmt::format("{} is cuda, but this node has {} GPUs that this program can use, and this is rank {} "
                        "on it: start a rank a GPU with a build for GPUs, or choose cpu.",
                        key, devices, context.node_rank));
    });
    context.log.info("Computing on CPUs: {}.", lack);
    return;
  }
#ifdef ALLOSAUR_HAVE_CUDA
  device_ = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(context.node_rank));
  comm::coordinate(world_, [&] { c10::cuda::set_device(device_.index()); });
  at::globalContext().setFloat32MatmulPrecision("high");  // TF32 in what float32 products there are, as published
  auto group = std::make_unique<comm::NcclCommunicator>(world_, device_.index());
  watchdog_.watch([nccl = group.get()] { nccl->throw_if_failed(); });
  group_ = std::move(group);
  context.log.info("Computing on GPUs, one a rank.");
#endif
}

ComputeDevice::~ComputeDevice() {
  if (group_) watchdog_.watch({});
}

}  // namespace allosaur::jobs
