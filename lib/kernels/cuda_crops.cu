// Crops on CUDA: a block a crop. Compiled without contraction to fused multiply-adds, as on the host, so that both
// give the same numbers.
#include <string>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/error.hpp"
#include "kernels/backends.hpp"
#include "kernels/finish_crop.hpp"

namespace allosaur::kernels::cuda {

namespace {

constexpr int kThreads = 1024;  // there are about as many large crops as multiprocessors

/// The threads of a block.
struct Block {
  template <class Body>
  __device__ void for_each(int n, const Body& body) const {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) body(i);
    __syncthreads();
  }
  template <class Value>
  __device__ std::int64_t sum(int n, const Value& value) const {
    __shared__ long long warps[kThreads / 32];
    long long total = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) total += value(i);
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffU, total, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = total;
    __syncthreads();
    total = 0;
    for (const long long warp : warps) total += warp;
    __syncthreads();  // the sums have been read
    return total;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) finish_crops(FinishCrops k) {
  finish_crop(Block{}, k, blockIdx.x,
              [out = static_cast<T*>(k.output)](std::int64_t i, float x) { out[i] = static_cast<T>(x); });
}

}  // namespace

void run(const FinishCrops& k, void* stream) {
  if (k.crops == 0) return;
  const auto kernel = k.type == Type::f32   ? finish_crops<float>
                      : k.type == Type::f16 ? finish_crops<__half>
                                            : finish_crops<__nv_bfloat16>;
  kernel<<<static_cast<unsigned>(k.crops), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(k);
  if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess)
    throw core::PeerError(std::string("The CUDA kernel FinishCrops could not be run: ") + cudaGetErrorString(status) +
                          ". Look at nvidia-smi and the kernel log of this host.");
}

}  // namespace allosaur::kernels::cuda
