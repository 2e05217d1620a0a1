#pragma once
#include <ATen/core/Tensor.h>

namespace allosaur::model {

/// While alive, and if `fast`, LibTorch may round the factors of float32 products to bfloat16 and sum in float32: three
/// times the rate where the CPU has AMX. Only for linear layers: in attention's many small products the conversion
/// would cost more than it saves.
class Products {
 public:
  explicit Products(bool fast);
  ~Products();
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

 private:
  bool fast_;
};

/// x W^T + b, x [..., in], weight [out, in]. With `fast`, see Products, forward and backward.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool fast);

}  // namespace allosaur::model
