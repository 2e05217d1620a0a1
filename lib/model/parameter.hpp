#pragma once
#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

namespace allosaur::model {

/// How a parameter starts (dinov2/models/vision_transformer.py, init_weights; dinov2/layers/dino_head.py).
enum class Init : std::uint8_t { zeros, ones, truncated_normal, tiny_normal, fan_in_uniform, layer_scale };

/// A handle to one parameter of a module: whoever holds it may fill it, or re-seat it onto other memory of the same
/// shape.
struct Parameter {
  std::string name;    ///< as in the official state_dict, without module prefix
  std::string unit;    ///< grain of training: all parameters of a unit lie in one flat buffer
  at::Tensor* tensor;  ///< lives as long as the module
  Init init;
  double scale;  ///< bound of fan_in_uniform, value of layer_scale
};

/// Fills `parameter` with its initial values: a pure function of (seed, prefix + name), the same on every rank.
void initialise(const Parameter& parameter, const std::string& prefix, std::uint64_t seed);

}  // namespace allosaur::model
