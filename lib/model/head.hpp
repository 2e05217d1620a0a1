#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/parameter.hpp"

namespace allosaur::model {

/// Shape of a DINO or iBOT head (facts 1.7).
struct HeadConfig {
  int in_dim = 1024, hidden_dim = 2048, bottleneck_dim = 256, layers = 3;
  std::int64_t prototypes = 65536;
};

/// Projection head: an MLP to the bottleneck, L2 normalisation, then a weight-normalised product with the prototypes.
/// The product itself is left to the loss, which never materialises the student's scores.
class ProjectionHead {
 public:
  explicit ProjectionHead(const HeadConfig& config);
  const HeadConfig& config() const noexcept { return config_; }

  /// "mlp.0.weight" ..., "last_layer.weight_g", "last_layer.weight_v"; all in the unit "head".
  std::vector<Parameter> parameters();
  /// See model::linear(); off at first.
  void set_fast_products(bool fast) noexcept { fast_products_ = fast; }
  /// x [n, D] -> unit vectors [n, bottleneck].
  at::Tensor embed(const at::Tensor& x) const;
  /// The effective prototypes g * v / |v|, [K, bottleneck] of `type`.
  at::Tensor prototypes(at::ScalarType type) const;

 private:
  HeadConfig config_;
  std::vector<at::Tensor> weights_, biases_;
  at::Tensor gain_, direction_;  // last_layer.weight_g [K, 1], weight_v [K, bottleneck]
  bool fast_products_ = false;
};

}  // namespace allosaur::model
