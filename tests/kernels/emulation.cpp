// The emulation of CUDA sees what goes wrong in kernels: these do it on purpose.
#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels/emulation/cuda_runtime.h"
#include "kernels/emulation/executors.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using emulation::Order;

constexpr unsigned kThreads = 96;

/// What a kernel writes, a number a thread, when threads take their turns in an order.
using Written = std::array<float, 2 * kThreads>;

Written written(Order order, void (*kernel)(float*), unsigned threads = kThreads) {
  Written to{};
  emulation::set_order(order);
  const cudaLaunchConfig_t config{.gridDim = {2}, .blockDim = {threads}, .dynamicSmemBytes = 0, .stream = nullptr};
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, to.data());
  CHECK(status == cudaSuccess);
  return to;
}

/// The threads of a block in another order, or (two barriers) as it was.
template <bool first_barrier, bool second_barrier>
__global__ void turn(float* to) {
  __shared__ float shared[kThreads];
  for (unsigned shift : {1U, 5U}) {
    shared[threadIdx.x] = static_cast<float>(threadIdx.x + shift);
    if (first_barrier) __syncthreads();
    to[blockIdx.x * kThreads + threadIdx.x] += shared[(threadIdx.x + 40) % kThreads];
    if (second_barrier) __syncthreads();
  }
}

TEST_CASE("emulated threads meet at barriers, whatever their order") {
  for (const Order order : {Order::forward, Order::reverse, Order::shuffled}) {
    const Written to = written(order, turn<true, true>);
    for (std::size_t i = 0; i < to.size(); ++i) CHECK(to[i] == static_cast<float>((i + 40) % kThreads * 2 + 6));
  }
}

TEST_CASE("a missing barrier shows in some order: as NaN from shared memory, or as another's number") {
  for (const auto kernel : {turn<false, true>, turn<true, false>}) {
    const Written right = written(Order::forward, turn<true, true>);
    bool differs = false;
    for (const Order order : {Order::forward, Order::reverse, Order::shuffled})
      differs = differs || written(order, kernel) != right;
    CHECK(differs);
  }
  const Written to = written(Order::forward, turn<false, true>);
  CHECK(std::isnan(to[0]));
  CHECK(std::isnan(to[kThreads]));  // the block before has left nothing
}

__global__ void butterfly(float* to) {
  auto value = static_cast<float>(threadIdx.x);
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffU, value, step);
  to[blockIdx.x * kThreads + threadIdx.x] = value;
}

__global__ void half_of_a_warp_waits(float*) {
  if (threadIdx.x % 32 < 16) __syncthreads();
}

__global__ void two_barriers(float*) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void half_of_a_warp_shuffles(float* to) {
  if (threadIdx.x % 32 < 16) to[0] = __shfl_xor_sync(0xffffffffU, 1.0F, 1);
}

__global__ void shuffles_beyond_the_mask(float* to) {
  if (threadIdx.x % 32 < 16) to[0] = __shfl_xor_sync(0x0000ffffU, 1.0F, 16);
}

std::string complaint(void (*kernel)(float*), unsigned threads = kThreads) {
  try {
    written(Order::forward, kernel, threads);
  } catch (const std::logic_error& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("emulated shuffles exchange numbers within a warp, and threads that are not there are named") {
  const Written to = written(Order::shuffled, butterfly);
  for (std::size_t i = 0; i < to.size(); ++i) CHECK(to[i] == static_cast<float>(i % kThreads / 32 * 1024 + 496));

  CHECK(complaint(half_of_a_warp_waits).starts_with("In block (0, 0) thread 0 waits for a barrier at "));
  CHECK(complaint(half_of_a_warp_waits).ends_with(", but thread 16 has ended."));
  CHECK(complaint(two_barriers).find(", but thread 32 waits for a barrier at ") != std::string::npos);
  CHECK(complaint(half_of_a_warp_shuffles).find("waits for a shuffle at ") != std::string::npos);
  CHECK(complaint(half_of_a_warp_shuffles).ends_with(", but thread 16 has ended."));
  CHECK(complaint(shuffles_beyond_the_mask).ends_with(", but thread 16 has ended."));
  CHECK(complaint(butterfly, 40).ends_with(", but thread 40 does not exist."));
  CHECK(written(Order::reverse, butterfly) == to);  // nothing is left of a kernel that failed
}

TEST_CASE("grids that no GPU can run are refused") {
  for (const auto& [grid, block] : {std::pair{dim3{0x80000000U}, dim3{32}},
                                    {dim3{1, 65536}, dim3{32}},
                                    {dim3{0}, dim3{32}},
                                    {dim3{1}, dim3{1025}}}) {
    const cudaLaunchConfig_t config{.gridDim = grid, .blockDim = block, .dynamicSmemBytes = 0, .stream = nullptr};
    CHECK(cudaLaunchKernelEx(&config, butterfly, nullptr) == cudaErrorInvalidConfiguration);
  }
}

}  // namespace
}  // namespace allosaur
