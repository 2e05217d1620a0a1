// Crops on CUDA: a block a crop. Compiled without contraction to fused multiply-adds, as on the host, so that both
// give the same numbers.
#include "kernels/finish_crop.hpp"
#include "kernels/launch.cuh"

namespace allosaur::kernels::cuda {

namespace {

constexpr int kCropThreads = 1024;  // there are about as many large crops as multiprocessors

/// The threads of a block.
struct Block {
  template <class Body>
  __device__ void for_each(int n, const Body& body) const {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kCropThreads) body(i);
    __syncthreads();
  }
  template <class Value>
  __device__ std::int64_t sum(int n, const Value& value) const {
    __shared__ long long warps[kCropThreads / 32];
    long long total = 0;
    for (int i = static_cast<int>(threadIdx.x); i < n; i += kCropThreads) total += value(i);
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
__global__ void __launch_bounds__(kCropThreads) finish_crops(FinishCrops k) {
  finish_crop(Block{}, k, blockIdx.x,
              [out = static_cast<T*>(k.output)](std::int64_t i, float x) { out[i] = static_cast<T>(x); });
}

}  // namespace

void run(const FinishCrops& k, void* stream) {
  with_type(k.type, [&](auto type) {
    launch(finish_crops<decltype(type)>, {.x = k.crops, .threads = kCropThreads}, stream, k);
  });
}

}  // namespace allosaur::kernels::cuda
