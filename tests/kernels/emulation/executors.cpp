#include "kernels/emulation/executors.hpp"

#ifdef ALLOSAUR_HAVE_CUDA
#include <cuda_runtime.h>
#endif

#include "kernels/backends.hpp"

namespace allosaur {

#define ALLOSAUR_DECLARE(Kernel)                \
  namespace kernels::emulated {                 \
  void run(const Kernel& kernel, void* stream); \
  }
ALLOSAUR_KERNELS(ALLOSAUR_DECLARE)

namespace testing {

namespace {

bool has_gpu() {
#ifdef ALLOSAUR_HAVE_CUDA
  int count = 0;
  static const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  return found;
#else
  return false;
#endif
}

}  // namespace

template <class Kernel>
void Executor::operator()(const Kernel& kernel) const {
  if (emulated) {
    emulation::set_order(*emulated);
    return kernels::emulated::run(kernel, nullptr);
  }
  kernels::run({.cuda = gpu}, kernel);
#ifdef ALLOSAUR_HAVE_CUDA
  if (gpu) REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
#endif
}

#define ALLOSAUR_INSTANTIATE(Kernel) template void Executor::operator()(const kernels::Kernel&) const;
ALLOSAUR_KERNELS(ALLOSAUR_INSTANTIATE)

const std::vector<Executor>& executors() {
  static const std::vector<Executor> all = [] {
    using emulation::Order;
    std::vector<Executor> found{{"host"},
                                {"emulated, forward", false, Order::forward},
                                {"emulated, reverse", false, Order::reverse},
                                {"emulated, shuffled", false, Order::shuffled}};
    if (has_gpu()) found.push_back({"GPU", true});
    return found;
  }();
  return all;
}

void* allocate(std::size_t bytes) {
#ifdef ALLOSAUR_HAVE_CUDA
  void* memory = nullptr;
  if (has_gpu()) {
    REQUIRE(cudaMallocManaged(&memory, bytes) == cudaSuccess);
    return memory;
  }
#endif
  return ::operator new(bytes);
}

void release(void* memory) {
#ifdef ALLOSAUR_HAVE_CUDA
  if (has_gpu()) {
    cudaFree(memory);
    return;
  }
#endif
  ::operator delete(memory);
}

}  // namespace testing
}  // namespace allosaur
