#pragma once
#include <memory>

#include "comm/mpi_communicator.hpp"

namespace allosaur::comm {

/// Collective. A group of all ranks that compares what they enter, or does not, whatever the build does.
std::unique_ptr<MpiCommunicator> group_that_compares(bool wish);

/// Collective. Compares every collective of `group`, for every element type and for even, uneven and empty sizes, with
/// a serial computation; buffers live on `device`.
void compare_with_serial(Communicator& group, at::Device device);

}  // namespace allosaur::comm
