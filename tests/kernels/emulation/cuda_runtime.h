#pragma once
// As much of CUDA's header as the kernels use, for a C++ compiler: see emulation.hpp.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/emulation/emulation.hpp"

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // a block has a thread of the host to itself

struct dim3 {
  unsigned x = 1, y = 1;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };

inline const char* cudaGetErrorString(cudaError_t) {
  return "invalid configuration argument";
}

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...) && (0 + ... + sizeof(Parameters)) <= 4096);
  const dim3 grid = config->gridDim, block = config->blockDim;
  const auto outside = [](unsigned n, unsigned most) { return n == 0 || n > most; };
  if (outside(grid.x, 0x7fffffff) || outside(grid.y, 65535) || outside(block.x, 1024) || outside(block.y, 1))
    return cudaErrorInvalidConfiguration;
  gridDim = grid;
  blockDim = block;
  const std::tuple<Parameters...> values(std::forward<Arguments>(arguments)...);
  allosaur::emulation::run_grid([&] { std::apply(kernel, values); });
  return cudaSuccess;
}

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  allosaur::emulation::barrier(where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, std::source_location where = std::source_location::current()) {
  std::uint64_t bits = 0;
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(bits));
  std::memcpy(&bits, &value, sizeof(T));
  bits = allosaur::emulation::shuffle_xor(mask, bits, lanes, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline float normcdff(float x) {
  return static_cast<float>(0.5 * std::erfc(-x * std::sqrt(0.5)));
}
