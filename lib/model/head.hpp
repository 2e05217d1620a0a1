#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/parameter.hpp"

namespace allosaur::model {

/// Shape of a DINO or iBOT head (dinov2/layers/dino_head.py).
struct HeadConfig {
  int in_dim = 1024, hidden_dim = 2048, bottleneck_dim = 256, layers = 3;
  std::int64_t prototypes = 65536;
};

/// The last layer of a head, a weight-normalised product: prototype k is gain_k * direction_k / |direction_k|.
struct Prototypes {
  at::Tensor gain, direction;  // last_layer.weight_g [K, 1], weight_v [K, b]

  /// [K, b] of `type`, whatever theirs is; without gradients.
  at::Tensor effective(at::ScalarType type) const;
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
  const Prototypes& prototypes() const noexcept { return prototypes_; }

 private:
  HeadConfig config_;
  std::vector<at::Tensor> weights_, biases_;
  Prototypes prototypes_;
  bool fast_products_ = false;
};

}  // namespace allosaur::model
