#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/backends.hpp"
#include "kernels/convert.hpp"
#include "kernels/parallel.hpp"
#include "kernels/vector_math.hpp"

namespace allosaur::kernels::cpu {

namespace {

struct Statistics {
  float mean, rstd;
};

ALLOSAUR_VECTORISED Statistics normalise(std::int64_t n, const float* __restrict x, const float* __restrict weight,
                                         const float* __restrict bias, float eps, float* __restrict y) {
  const float count = static_cast<float>(n);
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += x[i];
  const float mean = sum / count;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float rstd = 1.0F / std::sqrt(squares / count + eps);
  for (std::int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
  return {mean, rstd};
}

ALLOSAUR_VECTORISED void normalise_backward(std::int64_t n, const float* __restrict x, Statistics statistics,
                                            const float* __restrict weight, const float* __restrict grad,
                                            float* __restrict grad_x, float* __restrict grad_weight,
                                            float* __restrict grad_bias) {
  const float mean = statistics.mean, rstd = statistics.rstd;
  float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
  for (std::int64_t i = 0; i < n; ++i) {
    const float unit = (x[i] - mean) * rstd, g = grad[i] * weight[i];
    sum += g;
    dot += g * unit;
    grad_weight[i] += grad[i] * unit;
    grad_bias[i] += grad[i];
  }
  const float mean_g = sum / static_cast<float>(n), mean_dot = dot / static_cast<float>(n);
  for (std::int64_t i = 0; i < n; ++i) {
    const float unit = (x[i] - mean) * rstd, g = grad[i] * weight[i];
    grad_x[i] = (g - mean_g - unit * mean_dot) * rstd;
  }
}

ALLOSAUR_VECTORISED void gelu(std::int64_t n, const float* x, const float* bias, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float z = x[i] + bias[i];
    y[i] = z * normal(z).cdf;
  }
}

ALLOSAUR_VECTORISED void gelu_backward(std::int64_t n, const float* x, const float* bias, const float* grad,
                                       float* grad_x) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float z = x[i] + bias[i];
    const Normal at = normal(z);
    grad_x[i] = grad[i] * (at.cdf + z * at.pdf);
  }
}

/// x and bias: the gate's n elements, then the value's.
ALLOSAUR_VECTORISED void swiglu(std::int64_t n, const float* __restrict x, const float* __restrict bias,
                                float* __restrict y) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float gate = x[i] + bias[i];
    y[i] = gate * sigmoid(gate) * (x[n + i] + bias[n + i]);
  }
}

ALLOSAUR_VECTORISED void swiglu_backward(std::int64_t n, const float* x, const float* bias, const float* grad,
                                         float* grad_gate, float* grad_value) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float gate = x[i] + bias[i], v = x[n + i] + bias[n + i];
    const float s = sigmoid(gate), silu = gate * s, g = grad[i];
    grad_gate[i] = g * v * (s + silu * (1.0F - s));
    grad_value[i] = g * silu;
  }
}

ALLOSAUR_VECTORISED void add(std::int64_t n, const float* __restrict x, float* __restrict y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}

/// `y` may be `before`.
ALLOSAUR_VECTORISED void add_scaled(std::int64_t n, const float* before, const float* x, const float* bias, float scale,
                                    const float* gamma, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = before[i] + (x[i] + bias[i]) * (scale * gamma[i]);
}

ALLOSAUR_VECTORISED void copy_scaled(std::int64_t n, const float* __restrict x, float scale, float* __restrict y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * scale;
}

struct Products {
  float xx, xy;
};

ALLOSAUR_VECTORISED Products dot(std::int64_t n, const float* x, const float* y) {
  float xx = 0, xy = 0;
#pragma omp simd reduction(+ : xx, xy)
  for (std::int64_t i = 0; i < n; ++i) {
    xx += x[i] * x[i];
    xy += x[i] * y[i];
  }
  return {xx, xy};
}

ALLOSAUR_VECTORISED void add_multiple(std::int64_t n, float factor, const float* __restrict x, float* __restrict y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

std::int64_t rows_a_piece(std::int64_t width) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, width));
}

std::int64_t row_at(const std::int64_t* index, std::int64_t i) {
  return index == nullptr ? i : index[i];
}

/// A vector of parameters, or a constant where there is none.
class Parameters {
 public:
  Parameters(const float* values, std::int64_t n, float otherwise)
      : values_(values), constant_(static_cast<std::size_t>(values == nullptr ? n : 0), otherwise) {}
  const float* data() const { return values_ == nullptr ? constant_.data() : values_; }

 private:
  const float* values_;
  std::vector<float> constant_;
};

/// An array of `type` read and written as float32, at most `width` elements at a time: 16-bit numbers pass through a
/// buffer.
class View {
 public:
  View(const void* data, Type type, std::int64_t width)
      : View(const_cast<void*>(data), type, width) {}  // NOLINT: written only where the kernel's argument is not const
  View(void* data, Type type, std::int64_t width)
      : data_(data), type_(type), buffer_(static_cast<std::size_t>(type == Type::f32 ? 0 : width)) {}
  /// Elements [begin, begin + n).
  const float* read(std::int64_t begin, std::int64_t n) { return load(begin, n, data_, type_, buffer_.data()); }
  /// Where elements from `begin` on are to be written; finish() puts them in place.
  float* write(std::int64_t begin) { return type_ == Type::f32 ? static_cast<float*>(data_) + begin : buffer_.data(); }
  void finish(std::int64_t begin, std::int64_t n) {
    if (type_ != Type::f32) store(begin, n, buffer_.data(), type_, data_);
  }

 private:
  void* data_;
  Type type_;
  std::vector<float> buffer_;
};

}  // namespace

void run(const LayerNorm& k) {
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, k.dim), output(k.output, k.type, k.dim);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* row = x.read(row_at(k.index, i) * k.dim, k.dim);
      if (k.gathered != nullptr) store(i * k.dim, k.dim, row, k.type, k.gathered);
      const Statistics statistics =
          normalise(k.dim, row, k.weight, k.bias, static_cast<float>(k.eps), output.write(i * k.dim));
      output.finish(i * k.dim, k.dim);
      if (k.mean != nullptr) k.mean[i] = statistics.mean;
      if (k.rstd != nullptr) k.rstd[i] = statistics.rstd;
    }
  });
}

void run(const LayerNormBackward& k) {
  // The parameters' gradients are summed within pieces and then over them, in an order that no thread count changes.
  constexpr std::int64_t kMaxPieces = 64;
  const std::int64_t grain = std::max(rows_a_piece(k.dim), (k.rows + kMaxPieces - 1) / kMaxPieces);
  const std::int64_t pieces = (k.rows + grain - 1) / grain;
  std::vector<float> partial(static_cast<std::size_t>(pieces * 2 * k.dim));
  for_pieces(k.rows, grain, [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, k.dim), grad_output(k.grad_output, k.type, k.dim), grad_x(k.grad_x, k.type, k.dim);
    float* grad_weight = partial.data() + begin / grain * 2 * k.dim;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t to = row_at(k.index, i) * k.dim;
      normalise_backward(k.dim, x.read(i * k.dim, k.dim), {k.mean[i], k.rstd[i]}, k.weight,
                         grad_output.read(i * k.dim, k.dim), grad_x.write(to), grad_weight, grad_weight + k.dim);
      grad_x.finish(to, k.dim);
    }
  });
  std::fill_n(k.grad_weight, k.dim, 0.0F);
  std::fill_n(k.grad_bias, k.dim, 0.0F);
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    add(k.dim, partial.data() + piece * 2 * k.dim, k.grad_weight);
    add(k.dim, partial.data() + (piece * 2 + 1) * k.dim, k.grad_bias);
  }
}

void run(const Gelu& k) {
  const Parameters bias(k.bias, k.dim, 0);
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, k.dim), output(k.output, k.type, k.dim);
    for (std::int64_t at = begin * k.dim; at < end * k.dim; at += k.dim) {
      gelu(k.dim, x.read(at, k.dim), bias.data(), output.write(at));
      output.finish(at, k.dim);
    }
  });
}

void run(const GeluBackward& k) {
  const Parameters bias(k.bias, k.dim, 0);
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, k.dim), grad_output(k.grad_output, k.type, k.dim), grad_x(k.grad_x, k.type, k.dim);
    for (std::int64_t at = begin * k.dim; at < end * k.dim; at += k.dim) {
      gelu_backward(k.dim, x.read(at, k.dim), bias.data(), grad_output.read(at, k.dim), grad_x.write(at));
      grad_x.finish(at, k.dim);
    }
  });
}

void run(const SwiGlu& k) {
  const Parameters bias(k.bias, 2 * k.hidden, 0);
  for_pieces(k.rows, rows_a_piece(k.hidden), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, 2 * k.hidden), output(k.output, k.type, k.hidden);
    for (std::int64_t i = begin; i < end; ++i) {
      swiglu(k.hidden, x.read(i * 2 * k.hidden, 2 * k.hidden), bias.data(), output.write(i * k.hidden));
      output.finish(i * k.hidden, k.hidden);
    }
  });
}

void run(const SwiGluBackward& k) {
  const Parameters bias(k.bias, 2 * k.hidden, 0);
  for_pieces(k.rows, rows_a_piece(k.hidden), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, 2 * k.hidden), grad_output(k.grad_output, k.type, k.hidden),
        grad_x(k.grad_x, k.type, 2 * k.hidden);
    for (std::int64_t i = begin; i < end; ++i) {
      float* grad_gate = grad_x.write(i * 2 * k.hidden);
      swiglu_backward(k.hidden, x.read(i * 2 * k.hidden, 2 * k.hidden), bias.data(),
                      grad_output.read(i * k.hidden, k.hidden), grad_gate, grad_gate + k.hidden);
      grad_x.finish(i * 2 * k.hidden, 2 * k.hidden);
    }
  });
}

void run(const ResidualAdd& k) {
  const Parameters gamma(k.gamma, k.dim, 1), bias(k.bias, k.dim, 0);
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, k.dim), branch(k.branch, k.type, k.dim);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t to = row_at(k.index, i) * k.dim;
      const float* before = x.read(to, k.dim);
      add_scaled(k.dim, before, branch.read(i * k.dim, k.dim), bias.data(), k.scale == nullptr ? 1.0F : k.scale[i],
                 gamma.data(), x.write(to));
      x.finish(to, k.dim);
    }
  });
}

void run(const ResidualGather& k) {
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    View x(k.x, k.type, k.dim), output(k.output, k.type, k.dim);
    for (std::int64_t i = begin; i < end; ++i) {
      copy_scaled(k.dim, x.read(row_at(k.index, i) * k.dim, k.dim), k.scale == nullptr ? 1.0F : k.scale[i],
                  output.write(i * k.dim));
      output.finish(i * k.dim, k.dim);
    }
  });
}

void run(const WeightNorm& k) {
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    View gain(k.gain, k.type, 1), direction(k.direction, k.type, k.dim), output(k.output, k.output_type, k.dim);
    for (std::int64_t i = begin; i < end; ++i) {
      const float* v = direction.read(i * k.dim, k.dim);
      copy_scaled(k.dim, v, *gain.read(i, 1) / std::sqrt(dot(k.dim, v, v).xx), output.write(i * k.dim));
      output.finish(i * k.dim, k.dim);
    }
  });
}

void run(const WeightNormBackward& k) {
  for_pieces(k.rows, rows_a_piece(k.dim), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const float* v = k.direction + i * k.dim;
      float* grad = k.grad_direction + i * k.dim;
      const Products products = dot(k.dim, v, grad);
      k.grad_gain[i] = products.xy / (k.scale[i] * std::sqrt(products.xx));
      add_multiple(k.dim, -products.xy / products.xx, v, grad);
    }
  });
}

}  // namespace allosaur::kernels::cpu
