#pragma once
#include <cstdint>

namespace allosaur::kernels {

/// Where the pointers of a kernel live: host memory, or CUDA memory, whose kernels are queued on `stream`.
struct Device {
  bool cuda = false;
  void* stream = nullptr;  ///< a cudaStream_t; null: the default stream
};

/// How numbers of the compute type are stored.
enum class Type : std::uint8_t { f32, f16, bf16 };

/// Runs a kernel: one of the structs below, which holds its arguments. Pointers are not owned, need the alignment of
/// their elements only, and do not overlap unless said. Arrays are dense and row-major. On the host the call returns
/// when the work is done, spread over OpenMP's threads; the result does not depend on their number. Sums are float32
/// (double over long rows). Throws core::PeerError for a CUDA device in a build without CUDA.
template <class Kernel>
void run(const Device& device, const Kernel& kernel);

/// AdamW with decoupled decay (Loshchilov & Hutter 2019), as in PyTorch, the EMA teacher and the casts to the compute
/// type, in one pass over n elements:
///   weights -= lr weight_decay weights;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2
///   weights -= lr / correction1 * m / (sqrt(v) / sqrt(correction2) + eps)
///   teacher += (1 - teacher_momentum)(weights - teacher)
/// with g = gradient_scale * gradient and correction_i = 1 - beta_i^step.
struct AdamWEma {
  std::int64_t n = 0;
  const void* gradient = nullptr;
  Type gradient_type = Type::f32;
  float *exp_avg = nullptr, *exp_avg_sq = nullptr, *weights = nullptr, *teacher = nullptr;
  double gradient_scale = 1, lr = 0, weight_decay = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double correction1 = 1, correction2 = 1, teacher_momentum = 1;
  Type compute_type = Type::f32;
  void *student_compute = nullptr, *teacher_compute = nullptr;  ///< n of compute_type each, or null: not wanted
};

/// output (+)= weight * softmax(logits / temperature + shift), row by row.
struct TargetRows {
  std::int64_t rows = 0, prototypes = 0;
  const void* logits = nullptr;  ///< [rows, K] of `type`
  Type type = Type::f32;
  const float* shift = nullptr;  ///< [K]
  double temperature = 1, weight = 1;
  bool accumulate = false;
  float* output = nullptr;  ///< [rows, K]
};

/// Cross-entropy of rows of scores s_ik = scale_k * scores_ik against targets whose rows sum to `mass`, and its
/// gradient:
///   loss[i] = row_weight[i] * (mass * logsumexp(s_i / temperature) - sum_k target_ik s_ik / temperature)
///   scores_ik becomes scale_k * row_weight[i] / temperature * (mass * softmax(s_i / temperature)_k - target_ik)
struct CrossEntropyRows {
  std::int64_t rows = 0, prototypes = 0;
  float* scores = nullptr;            ///< [rows, K], in and out
  const float* scale = nullptr;       ///< [K]
  const float* target = nullptr;      ///< [rows, K]
  const float* row_weight = nullptr;  ///< [rows]
  double mass = 1, temperature = 1;
  float* loss = nullptr;  ///< [rows]
};

/// output[i] = log sum_k exp(logits[i, k] / temperature + shift[k]).
struct RowLogSumExp {
  std::int64_t rows = 0, prototypes = 0;
  const void* logits = nullptr;  ///< [rows, K] of `type`
  Type type = Type::f32;
  const float* shift = nullptr;  ///< [K]
  double temperature = 1;
  float* output = nullptr;  ///< [rows]
};

/// output[k] = log sum_i exp(logits[i, k] / temperature + shift[i]); minus infinity where there are no rows.
struct ColumnLogSumExp {
  std::int64_t rows = 0, prototypes = 0;
  const void* logits = nullptr;  ///< [rows, K] of `type`
  Type type = Type::f32;
  const float* shift = nullptr;  ///< [rows]
  double temperature = 1;
  float* output = nullptr;  ///< [K]
};

/// Layer normalisation of chosen rows: output[i] = normalised x[index[i]] * weight + bias. In the kernels from
/// here on `type` is that of the void pointers; parameters, their gradients and statistics are float32.
struct LayerNorm {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32;
  const void* x = nullptr;              ///< [any, dim]
  const std::int64_t* index = nullptr;  ///< [rows] into x, or null: row i is row i
  const float *weight = nullptr, *bias = nullptr;
  double eps = 1e-6;
  void* output = nullptr;                  ///< [rows, dim]
  void* gathered = nullptr;                ///< [rows, dim]: the chosen rows of x, for the backward pass; or null
  float *mean = nullptr, *rstd = nullptr;  ///< [rows]; or null
};

/// CUDA sums the gradients of a layer norm's parameters over at most so many slices of the rows, then over these.
inline constexpr std::int64_t kLayerNormSlices = 64;

/// Its gradients. grad_x is written at the chosen rows only; grad_weight and grad_bias are overwritten.
struct LayerNormBackward {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32;
  const void* x = nullptr;  ///< [rows, dim], gathered
  const float *mean = nullptr, *rstd = nullptr, *weight = nullptr;
  const void* grad_output = nullptr;    ///< [rows, dim]
  const std::int64_t* index = nullptr;  ///< [rows] into grad_x, without repetition; or null
  void* grad_x = nullptr;               ///< [any, dim]
  float *grad_weight = nullptr, *grad_bias = nullptr;
  float* workspace = nullptr;  ///< [kLayerNormSlices, 2, dim] on CUDA; the host needs none
};

/// Exact GELU, z * Phi(z) of z = x + bias. `output` may be `x`.
struct Gelu {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32;
  const void* x = nullptr;      ///< [rows, dim]
  const float* bias = nullptr;  ///< [dim], or null: 0
  void* output = nullptr;       ///< [rows, dim]
};

/// grad_x = grad_output * (Phi(z) + z phi(z)). `grad_x` may be `grad_output` or `x`.
struct GeluBackward {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32;
  const void* x = nullptr;
  const float* bias = nullptr;
  const void* grad_output = nullptr;
  void* grad_x = nullptr;
};

/// output = silu(z[:, :hidden]) * z[:, hidden:] of z = x + bias.
struct SwiGlu {
  std::int64_t rows = 0, hidden = 0;
  Type type = Type::f32;
  const void* x = nullptr;      ///< [rows, 2 hidden]
  const float* bias = nullptr;  ///< [2 hidden], or null: 0
  void* output = nullptr;       ///< [rows, hidden]
};

/// Its gradient. `grad_x` may be `x` (rows of both are read before they are written).
struct SwiGluBackward {
  std::int64_t rows = 0, hidden = 0;
  Type type = Type::f32;
  const void* x = nullptr;
  const float* bias = nullptr;
  const void* grad_output = nullptr;
  void* grad_x = nullptr;  ///< [rows, 2 hidden]
};

/// x[index[i]] += scale[i] * gamma * (branch[i] + bias): a residual branch with LayerScale and stochastic depth.
struct ResidualAdd {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32;
  void* x = nullptr;                    ///< [any, dim]
  const std::int64_t* index = nullptr;  ///< [rows] into x, without repetition; or null: row i is row i
  const float* scale = nullptr;         ///< [rows], or null: 1
  const float* gamma = nullptr;         ///< [dim], or null: 1
  const float* bias = nullptr;          ///< [dim], or null: 0
  const void* branch = nullptr;         ///< [rows, dim]
};

/// output[i] = scale[i] * x[index[i]]: what reaches the branch of a residual addition, before gamma.
struct ResidualGather {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32;
  const void* x = nullptr;
  const std::int64_t* index = nullptr;
  const float* scale = nullptr;
  void* output = nullptr;  ///< [rows, dim]
};

/// Weight normalisation (Salimans & Kingma 2016), row by row: output[i] = gain[i] * direction[i] / |direction[i]|.
struct WeightNorm {
  std::int64_t rows = 0, dim = 0;
  Type type = Type::f32, output_type = Type::f32;
  const void *gain = nullptr, *direction = nullptr;  ///< [rows], [rows, dim] of `type`
  void* output = nullptr;                            ///< [rows, dim] of `output_type`
};

/// The gradients of scores scale_k * (x . v_k), scale_k = gain_k / |v_k|, v the directions. grad_direction comes with
/// sum_i scale_k * d score_ik * x_i, added to what earlier calls left, and loses its part along v_k, which belongs to
/// the gain: grad_gain_k = (grad_direction_k . v_k) / (scale_k |v_k|).
struct WeightNormBackward {
  std::int64_t rows = 0, dim = 0;
  const float* direction = nullptr;  ///< [rows, dim]
  const float* scale = nullptr;      ///< [rows], none zero
  float* grad_direction = nullptr;   ///< [rows, dim], in and out
  float* grad_gain = nullptr;        ///< [rows]
};

/// Blur is separable, and reaches this far each way.
inline constexpr int kBlurRadius = 4, kBlurTaps = 2 * kBlurRadius + 1;

enum class ColorOp : std::uint8_t { brightness, contrast, saturation, hue };

/// What is done to the colours of one crop: jitter, grey, blur, solarisation. Saturation, hue and grey are of RGB
/// crops; others are left as they are.
struct CropRecipe {
  bool jitter = false, grey = false, blur = false, solarize = false;
  /// Of jitter: every operation once, in this order.
  ColorOp order[4] = {ColorOp::brightness, ColorOp::contrast, ColorOp::saturation, ColorOp::hue};
  float brightness = 1, contrast = 1, saturation = 1;  ///< factors: blends with black, the mean grey, the grey crop
  std::int32_t hue = 0;                                ///< turn of the 8-bit hue
  float blur_weights[kBlurTaps] = {};                  ///< of the neighbours, along rows and columns
  std::int32_t solarize_threshold = 128;               ///< values of this and more are inverted
};

/// Finishes crops that were resized: colours as Pillow and torchvision compute them on 8-bit images, then
/// (value / 255 - mean) / deviation, rounded to `type`. The host and CUDA give the same bits. A crop has fewer than
/// 2^31 values.
struct FinishCrops {
  std::int64_t crops = 0, channels = 3, height = 0, width = 0;
  std::uint8_t* values = nullptr;                     ///< [crops, channels, height, width], overwritten
  const CropRecipe* recipes = nullptr;                ///< [crops]
  const float *mean = nullptr, *deviation = nullptr;  ///< [channels]
  float* workspace = nullptr;                         ///< [crops, height, width]
  Type type = Type::f32;
  void* output = nullptr;  ///< [crops, channels, height, width]
};

}  // namespace allosaur::kernels
