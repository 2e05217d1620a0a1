#pragma once
#include <ATen/core/Tensor.h>

namespace allosaur::model {

/// Matrix products of the compute type, by the library that is fastest on the device: on CPUs that are not Intel's but
/// have AVX-512, float32 products go through LibTorch's oneDNN instead of its MKL.
///
/// While alive, and if `fast`, LibTorch may round the factors of float32 products to bfloat16 and sum in float32: three
/// times the rate where the CPU has AMX. Only for linear layers: in attention's many small products the conversion
/// would cost more than it saves.
class Products {
 public:
  /// `rows_vary`: numbers of rows come without end, as those of masked patches do, and not few of them over and over.
  explicit Products(bool fast, bool rows_vary = true);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  /// a [m, k] b [k, n]; either may be the transpose of a contiguous matrix.
  at::Tensor of(const at::Tensor& a, const at::Tensor& b) const;
  /// out = a b, in place.
  void write(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) const;
  /// out += factor * a b, in place.
  void add(at::Tensor& out, const at::Tensor& a, const at::Tensor& b, double factor = 1) const;
  /// x W^T + b, x [n, in], weight [out, in], bias [out] or undefined.
  at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) const;

 private:
  bool by_one_dnn(const at::Tensor& a, const at::Tensor& b) const;

  bool fast_, rows_vary_;
};

/// x W^T + b, x [..., in], weight [out, in], by Products forward and backward; differentiable.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool fast);

}  // namespace allosaur::model
