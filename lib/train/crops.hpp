#pragma once
#include <ATen/core/Tensor.h>

#include "data/augment.hpp"

namespace allosaur::train {

/// Finishes crops on a device (data::AugmentConfig::finish is false).
class CropFinisher {
 public:
  CropFinisher(const data::AugmentConfig& config, const at::Device& device);

  /// values uint8 [n, C, H, W], overwritten, and recipes uint8 [n, sizeof(kernels::CropRecipe)], both on the device;
  /// returns [n, C, H, W] of AugmentConfig::type there.
  at::Tensor operator()(const at::Tensor& values, const at::Tensor& recipes) const;

 private:
  at::ScalarType type_;
  at::Tensor mean_, deviation_;  // f32 [C]
};

}  // namespace allosaur::train
