#pragma once
// How the CUDA kernels are queued. The runtime's functions are called by name, no kernel<<<>>>, so that the tests can
// compile the same source for the host.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/error.hpp"
#include "kernels/backends.hpp"

namespace allosaur::kernels::cuda {

inline constexpr int kThreads = 256;

struct Grid {
  std::int64_t x = 0, y = 1;
  int threads = kThreads;  // of a block
};

/// Of a thread an element.
inline Grid grid_over(std::int64_t elements) {
  return {.x = (elements + kThreads - 1) / kThreads};
}

#define ALLOSAUR_NAME(Kernel)              \
  inline const char* name(const Kernel&) { \
    return #Kernel;                        \
  }
ALLOSAUR_KERNELS(ALLOSAUR_NAME)
#undef ALLOSAUR_NAME

/// Queues function(k, rest...) on a stream; an empty grid has nothing to do.
template <class Kernel, class... Parameters, class... Arguments>
void launch(void (*function)(Kernel, Parameters...), Grid grid, void* stream, const Kernel& k,
            const Arguments&... rest) {
  if (grid.x == 0 || grid.y == 0) return;
  // More blocks than 32 bits count are still too many, which CUDA refuses.
  constexpr std::int64_t kMost = std::numeric_limits<unsigned>::max();
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(grid.x, kMost)), static_cast<unsigned>(std::min(grid.y, kMost)));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.stream = static_cast<cudaStream_t>(stream);
  if (const cudaError_t status = cudaLaunchKernelEx(&config, function, k, rest...); status != cudaSuccess)
    throw core::PeerError(std::string("The CUDA kernel ") + name(k) + " could not be run: " +
                          cudaGetErrorString(status) + ". Look at nvidia-smi and the kernel log of this host.");
}

/// Calls body(T{}) with the type that `type` stands for.
template <class Body>
void with_type(Type type, const Body& body) {
  if (type == Type::f16)
    body(__half{});
  else if (type == Type::bf16)
    body(__nv_bfloat16{});
  else
    body(float{});
}

}  // namespace allosaur::kernels::cuda
