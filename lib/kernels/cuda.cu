// The kernels on CUDA: a thread an element, or a block a row. Numbers are widened to float32 as they are read.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels/launch.cuh"
#include "kernels/update_factors.hpp"

namespace allosaur::kernels::cuda {

namespace {

__device__ float widen(float x) {
  return x;
}
__device__ float widen(__half x) {
  return __half2float(x);
}
__device__ float widen(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ void put(float* to, float x) {
  *to = x;
}
__device__ void put(__half* to, float x) {
  *to = __float2half_rn(x);
}
__device__ void put(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

__device__ std::int64_t row_at(const std::int64_t* index, std::int64_t i) {
  return index == nullptr ? i : index[i];
}

/// Combines a value over the threads of a block, in an order that is always the same; every thread gets the result.
template <class Value, class Combine>
__device__ Value over_block(Value value, Combine combine) {
  __shared__ Value shared[kThreads / 32];
  for (int step = 16; step > 0; step /= 2) value = combine(value, value.from_lane(step));
  __syncthreads();  // the last call's values have been read
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[0];
  for (int warp = 1; warp < kThreads / 32; ++warp) value = combine(value, shared[warp]);
  return value;
}

struct Sums {
  float a = 0, b = 0;
  __device__ Sums from_lane(int step) const {
    return {__shfl_xor_sync(0xffffffffU, a, step), __shfl_xor_sync(0xffffffffU, b, step)};
  }
};
__device__ Sums sum_over_block(float a, float b = 0) {
  return over_block(Sums{a, b}, [](Sums x, Sums y) { return Sums{x.a + y.a, x.b + y.b}; });
}

/// A log-sum-exp under way: the largest exponent, and the sum of exponentials relative to it.
struct Exponentials {
  float largest = -FLT_MAX, sum = 0;
  __device__ void add(float z) {
    if (z > largest) {
      sum *= expf(largest - z);
      largest = z;
    }
    sum += expf(z - largest);
  }
  __device__ Exponentials from_lane(int step) const {
    return {__shfl_xor_sync(0xffffffffU, largest, step), __shfl_xor_sync(0xffffffffU, sum, step)};
  }
  __device__ float log() const { return largest + logf(sum); }
};
__device__ Exponentials exponentials_over_block(Exponentials e) {
  return over_block(e, [](Exponentials x, Exponentials y) {
    const float largest = fmaxf(x.largest, y.largest);
    return Exponentials{largest, x.sum * expf(x.largest - largest) + y.sum * expf(y.largest - largest)};
  });
}

template <class Gradient, class Compute>
__global__ void adamw_ema(AdamWEma k, UpdateFactors f) {
  const auto stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < k.n; i += stride) {
    const float g = widen(static_cast<const Gradient*>(k.gradient)[i]) * f.gradient_scale;
    const float m = k.exp_avg[i] + f.rate1 * (g - k.exp_avg[i]);
    const float v = k.exp_avg_sq[i] * f.beta2 + f.rate2 * (g * g);
    const float w = k.weights[i] * f.keep - f.step * (m / (sqrtf(v) * f.inverse_root2 + f.eps));
    const float t = k.teacher[i] + f.teacher_rate * (w - k.teacher[i]);
    k.exp_avg[i] = m;
    k.exp_avg_sq[i] = v;
    k.weights[i] = w;
    k.teacher[i] = t;
    if (k.student_compute != nullptr) put(static_cast<Compute*>(k.student_compute) + i, w);
    if (k.teacher_compute != nullptr) put(static_cast<Compute*>(k.teacher_compute) + i, t);
  }
}

template <class T>
__global__ void target_rows(TargetRows k, float scale, float weight) {
  const std::int64_t begin = blockIdx.x * k.prototypes;
  const T* x = static_cast<const T*>(k.logits) + begin;
  Exponentials e;
  for (std::int64_t i = threadIdx.x; i < k.prototypes; i += kThreads) e.add(widen(x[i]) * scale + k.shift[i]);
  e = exponentials_over_block(e);
  const float factor = weight / e.sum;
  for (std::int64_t i = threadIdx.x; i < k.prototypes; i += kThreads) {
    const float value = factor * expf(widen(x[i]) * scale + k.shift[i] - e.largest);
    k.output[begin + i] = k.accumulate ? k.output[begin + i] + value : value;
  }
}

__global__ void cross_entropy_rows(CrossEntropyRows k, float factor) {
  const std::int64_t begin = blockIdx.x * k.prototypes;
  float *s = k.scores + begin, dot = 0;
  const float* target = k.target + begin;
  Exponentials e;
  for (std::int64_t i = threadIdx.x; i < k.prototypes; i += kThreads) {
    s[i] *= k.scale[i];
    e.add(s[i] * factor);
    dot += target[i] * s[i];
  }
  e = exponentials_over_block(e);
  const float weight = k.row_weight[blockIdx.x];
  dot = sum_over_block(dot).a;
  const auto mass = static_cast<float>(k.mass);
  if (threadIdx.x == 0) k.loss[blockIdx.x] = weight * (mass * e.log() - dot * factor);
  for (std::int64_t i = threadIdx.x; i < k.prototypes; i += kThreads)
    s[i] = k.scale[i] * weight * factor * (mass / e.sum * expf(s[i] * factor - e.largest) - target[i]);
}

template <class T>
__global__ void row_log_sum_exp(RowLogSumExp k, float scale) {
  const T* x = static_cast<const T*>(k.logits) + blockIdx.x * k.prototypes;
  Exponentials e;
  for (std::int64_t i = threadIdx.x; i < k.prototypes; i += kThreads) e.add(widen(x[i]) * scale + k.shift[i]);
  e = exponentials_over_block(e);
  if (threadIdx.x == 0) k.output[blockIdx.x] = e.log();
}

template <class T>
__global__ void column_log_sum_exp(ColumnLogSumExp k, float scale) {
  const std::int64_t column = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (column >= k.prototypes) return;
  Exponentials e;
  for (std::int64_t i = 0; i < k.rows; ++i)
    e.add(widen(static_cast<const T*>(k.logits)[i * k.prototypes + column]) * scale + k.shift[i]);
  k.output[column] = e.log();
}

template <class T>
__global__ void layer_norm(LayerNorm k) {
  const std::int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(k.x) + row_at(k.index, row) * k.dim;
  T* output = static_cast<T*>(k.output) + row * k.dim;
  const auto count = static_cast<float>(k.dim);
  float sum = 0, squares = 0;
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) sum += widen(x[i]);
  const float mean = sum_over_block(sum).a / count;
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) squares += (widen(x[i]) - mean) * (widen(x[i]) - mean);
  const float rstd = 1.0F / sqrtf(sum_over_block(squares).a / count + static_cast<float>(k.eps));
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) {
    if (k.gathered != nullptr) static_cast<T*>(k.gathered)[row * k.dim + i] = x[i];
    put(output + i, (widen(x[i]) - mean) * rstd * k.weight[i] + k.bias[i]);
  }
  if (threadIdx.x == 0 && k.mean != nullptr) k.mean[row] = mean;
  if (threadIdx.x == 0 && k.rstd != nullptr) k.rstd[row] = rstd;
}

template <class T>
__global__ void layer_norm_backward(LayerNormBackward k) {
  const std::int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(k.x) + row * k.dim;
  const T* grad = static_cast<const T*>(k.grad_output) + row * k.dim;
  T* grad_x = static_cast<T*>(k.grad_x) + row_at(k.index, row) * k.dim;
  const float mean = k.mean[row], rstd = k.rstd[row];
  float sum = 0, dot = 0;
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) {
    const float g = widen(grad[i]) * k.weight[i];
    sum += g;
    dot += g * (widen(x[i]) - mean) * rstd;
  }
  const Sums sums = sum_over_block(sum, dot);
  const float mean_g = sums.a / static_cast<float>(k.dim), mean_dot = sums.b / static_cast<float>(k.dim);
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) {
    const float g = widen(grad[i]) * k.weight[i];
    put(grad_x + i, (g - mean_g - (widen(x[i]) - mean) * rstd * mean_dot) * rstd);
  }
}

constexpr int kColumns = 32;  // of a block that sums over rows; it has kThreads / kColumns lanes of rows

/// Sums over the rows of slice blockIdx.y; of weight and of bias, into the workspace.
template <class T>
__global__ void layer_norm_parameters(LayerNormBackward k, std::int64_t rows_a_slice) {
  __shared__ float weights[kThreads / kColumns][kColumns], biases[kThreads / kColumns][kColumns];
  const int lane = static_cast<int>(threadIdx.x) / kColumns, column_in_block = static_cast<int>(threadIdx.x) % kColumns;
  const std::int64_t column = blockIdx.x * static_cast<std::int64_t>(kColumns) + column_in_block;
  const std::int64_t first = blockIdx.y * rows_a_slice;
  const std::int64_t last = first + rows_a_slice < k.rows ? first + rows_a_slice : k.rows;
  float weight = 0, bias = 0;
  if (column < k.dim)
    for (std::int64_t row = first + lane; row < last; row += kThreads / kColumns) {
      const float g = widen(static_cast<const T*>(k.grad_output)[row * k.dim + column]);
      weight += g * (widen(static_cast<const T*>(k.x)[row * k.dim + column]) - k.mean[row]) * k.rstd[row];
      bias += g;
    }
  weights[lane][column_in_block] = weight;
  biases[lane][column_in_block] = bias;
  __syncthreads();
  if (lane != 0 || column >= k.dim) return;
  for (int other = 1; other < kThreads / kColumns; ++other) {
    weight += weights[other][column_in_block];
    bias += biases[other][column_in_block];
  }
  float* partial = k.workspace + blockIdx.y * (2 * k.dim) + column;
  partial[0] = weight;
  partial[k.dim] = bias;
}

__global__ void add_slices(LayerNormBackward k, std::int64_t slices) {
  const std::int64_t column = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (column >= k.dim) return;
  float weight = 0, bias = 0;
  for (std::int64_t slice = 0; slice < slices; ++slice) {
    weight += k.workspace[slice * 2 * k.dim + column];
    bias += k.workspace[(slice * 2 + 1) * k.dim + column];
  }
  k.grad_weight[column] = weight;
  k.grad_bias[column] = bias;
}

/// x and the bias of its column, none being zero.
template <class T>
__device__ float biased(const T& x, const float* bias, std::int64_t column) {
  return bias == nullptr ? widen(x) : widen(x) + bias[column];
}

template <class T>
__global__ void gelu(Gelu k) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (i >= k.rows * k.dim) return;
  const float z = biased(static_cast<const T*>(k.x)[i], k.bias, i % k.dim);
  put(static_cast<T*>(k.output) + i, z * normcdff(z));
}

template <class T>
__global__ void gelu_backward(GeluBackward k) {
  const std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (i >= k.rows * k.dim) return;
  const float z = biased(static_cast<const T*>(k.x)[i], k.bias, i % k.dim), pdf = 0.3989422804F * expf(-0.5F * z * z);
  put(static_cast<T*>(k.grad_x) + i, widen(static_cast<const T*>(k.grad_output)[i]) * (normcdff(z) + z * pdf));
}

__device__ float sigmoid(float x) {
  return 1.0F / (1.0F + expf(-x));
}

template <class T>
__global__ void swiglu(SwiGlu k) {
  const T* gate = static_cast<const T*>(k.x) + blockIdx.x * (2 * k.hidden);
  T* output = static_cast<T*>(k.output) + blockIdx.x * k.hidden;
  for (std::int64_t i = threadIdx.x; i < k.hidden; i += kThreads) {
    const float a = biased(gate[i], k.bias, i);
    put(output + i, a * sigmoid(a) * biased(gate[k.hidden + i], k.bias, k.hidden + i));
  }
}

template <class T>
__global__ void swiglu_backward(SwiGluBackward k) {
  const T* gate = static_cast<const T*>(k.x) + blockIdx.x * (2 * k.hidden);
  const T* grad = static_cast<const T*>(k.grad_output) + blockIdx.x * k.hidden;
  T* grad_gate = static_cast<T*>(k.grad_x) + blockIdx.x * (2 * k.hidden);
  for (std::int64_t i = threadIdx.x; i < k.hidden; i += kThreads) {
    const float a = biased(gate[i], k.bias, i), value = biased(gate[k.hidden + i], k.bias, k.hidden + i);
    const float g = widen(grad[i]), s = sigmoid(a);
    put(grad_gate + i, g * value * (s + a * s * (1.0F - s)));
    put(grad_gate + k.hidden + i, g * a * s);
  }
}

template <class T>
__global__ void residual_add(ResidualAdd k) {
  T* x = static_cast<T*>(k.x) + row_at(k.index, blockIdx.x) * k.dim;
  const T* branch = static_cast<const T*>(k.branch) + blockIdx.x * k.dim;
  const float scale = k.scale == nullptr ? 1.0F : k.scale[blockIdx.x];
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads)
    put(x + i, widen(x[i]) + biased(branch[i], k.bias, i) * (k.gamma == nullptr ? scale : scale * k.gamma[i]));
}

template <class T>
__global__ void residual_gather(ResidualGather k) {
  const T* x = static_cast<const T*>(k.x) + row_at(k.index, blockIdx.x) * k.dim;
  T* output = static_cast<T*>(k.output) + blockIdx.x * k.dim;
  const float scale = k.scale == nullptr ? 1.0F : k.scale[blockIdx.x];
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) put(output + i, widen(x[i]) * scale);
}

template <class T, class Output>
__global__ void weight_norm(WeightNorm k) {
  const T* v = static_cast<const T*>(k.direction) + blockIdx.x * k.dim;
  Output* output = static_cast<Output*>(k.output) + blockIdx.x * k.dim;
  float squares = 0;
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) squares += widen(v[i]) * widen(v[i]);
  const float scale = widen(static_cast<const T*>(k.gain)[blockIdx.x]) / sqrtf(sum_over_block(squares).a);
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) put(output + i, widen(v[i]) * scale);
}

__global__ void weight_norm_backward(WeightNormBackward k) {
  const float* v = k.direction + blockIdx.x * k.dim;
  float *grad = k.grad_direction + blockIdx.x * k.dim, squares = 0, product = 0;
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) {
    squares += v[i] * v[i];
    product += v[i] * grad[i];
  }
  const Sums sums = sum_over_block(squares, product);
  if (threadIdx.x == 0) k.grad_gain[blockIdx.x] = sums.b / (k.scale[blockIdx.x] * sqrtf(sums.a));
  for (std::int64_t i = threadIdx.x; i < k.dim; i += kThreads) grad[i] -= sums.b / sums.a * v[i];
}

}  // namespace

void run(const AdamWEma& k, void* stream) {
  const Grid grid{.x = std::min<std::int64_t>(grid_over(k.n).x, 4096)};
  with_type(k.gradient_type, [&](auto gradient) {
    with_type(k.compute_type, [&](auto compute) {
      launch(adamw_ema<decltype(gradient), decltype(compute)>, grid, stream, k, UpdateFactors(k));
    });
  });
}

void run(const TargetRows& k, void* stream) {
  with_type(k.type, [&](auto type) {
    launch(target_rows<decltype(type)>, {k.rows}, stream, k, static_cast<float>(1 / k.temperature),
           static_cast<float>(k.weight));
  });
}

void run(const CrossEntropyRows& k, void* stream) {
  launch(cross_entropy_rows, {k.rows}, stream, k, static_cast<float>(1 / k.temperature));
}

void run(const RowLogSumExp& k, void* stream) {
  with_type(k.type, [&](auto type) {
    launch(row_log_sum_exp<decltype(type)>, {k.rows}, stream, k, static_cast<float>(1 / k.temperature));
  });
}

void run(const ColumnLogSumExp& k, void* stream) {
  with_type(k.type, [&](auto type) {
    launch(column_log_sum_exp<decltype(type)>, grid_over(k.prototypes), stream, k,
           static_cast<float>(1 / k.temperature));
  });
}

void run(const LayerNorm& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(layer_norm<decltype(type)>, {k.rows}, stream, k); });
}

void run(const LayerNormBackward& k, void* stream) {
  const std::int64_t rows_a_slice = std::max<std::int64_t>(64, (k.rows + kLayerNormSlices - 1) / kLayerNormSlices);
  const std::int64_t slices = (k.rows + rows_a_slice - 1) / rows_a_slice;
  with_type(k.type, [&](auto type) {
    using T = decltype(type);
    launch(layer_norm_parameters<T>, {(k.dim + kColumns - 1) / kColumns, slices}, stream, k, rows_a_slice);
    launch(layer_norm_backward<T>, {k.rows}, stream, k);
  });
  launch(add_slices, grid_over(k.dim), stream, k, slices);
}

void run(const Gelu& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(gelu<decltype(type)>, grid_over(k.rows * k.dim), stream, k); });
}

void run(const GeluBackward& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(gelu_backward<decltype(type)>, grid_over(k.rows * k.dim), stream, k); });
}

void run(const SwiGlu& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(swiglu<decltype(type)>, {k.rows}, stream, k); });
}

void run(const SwiGluBackward& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(swiglu_backward<decltype(type)>, {k.rows}, stream, k); });
}

void run(const ResidualAdd& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(residual_add<decltype(type)>, {k.rows}, stream, k); });
}

void run(const ResidualGather& k, void* stream) {
  with_type(k.type, [&](auto type) { launch(residual_gather<decltype(type)>, {k.rows}, stream, k); });
}

void run(const WeightNorm& k, void* stream) {
  with_type(k.type, [&](auto type) {
    with_type(k.output_type,
              [&](auto output) { launch(weight_norm<decltype(type), decltype(output)>, {k.rows}, stream, k); });
  });
}

void run(const WeightNormBackward& k, void* stream) {
  launch(weight_norm_backward, {k.rows}, stream, k);
}

}  // namespace allosaur::kernels::cuda
