#include <c10/cuda/CUDAFunctions.h>

#include "collectives.hpp"
#include "comm/nccl_communicator.hpp"
#include "testing.hpp"

namespace allosaur::comm {

TEST_CASE("NCCL: collectives equal a serial computation") {
  auto& world = testing::world();
  if (c10::cuda::device_count() < world.size()) {
    if (world.rank() == 0) MESSAGE("skipped: needs a CUDA device for every rank");
    return;
  }
  NcclCommunicator group(world, world.rank());
  compare_with_serial(group, at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(world.rank())));
  CHECK(group.sum(std::int64_t{1}) == world.size());
  CHECK(group.split(0, world.rank())->size() == world.size());
  group.throw_if_failed();
}

}  // namespace allosaur::comm
