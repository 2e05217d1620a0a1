#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/head.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::train {

/// Sub-modules are clipped separately (dinov2/train/train.py).
enum class Submodule : std::uint8_t { backbone, dino_head, ibot_head };
inline constexpr int kSubmodules = 3;

struct NetworkConfig {
  model::VitConfig backbone;
  model::HeadConfig dino_head;
  model::HeadConfig ibot_head;
  bool fast_products = false;           ///< see model::linear()
  bool separate_ibot_head = false;      ///< false: patches go through the DINO head
  bool checkpoint_activations = false;  ///< see model::VisionTransformer::set_checkpoint_activations()
};

/// A parameter of a whole network, with its full name ("backbone.blocks.0.norm1.weight") and unit
/// ("backbone.blocks.0").
struct NetworkParameter {
  model::Parameter parameter;  // name without prefix, as the module knows it
  std::string prefix;          // "backbone."
  Submodule submodule;
  std::string name() const { return prefix + parameter.name; }
  std::string unit() const { return parameter.unit == "head" ? prefix + "all" : prefix + parameter.unit; }
};

/// A student or a teacher: a backbone and its heads.
class Network {
 public:
  explicit Network(const NetworkConfig& config);
  const NetworkConfig& config() const noexcept { return config_; }

  /// Every parameter, in forward order: backbone (patch embedding, blocks, norm), then heads.
  std::vector<NetworkParameter> parameters();
  model::VisionTransformer& backbone() noexcept { return backbone_; }
  const model::VisionTransformer& backbone() const noexcept { return backbone_; }
  const model::ProjectionHead& dino_head() const noexcept { return dino_head_; }
  const model::ProjectionHead& ibot_head() const noexcept { return ibot_head_ ? *ibot_head_ : dino_head_; }
  bool separate_ibot_head() const noexcept { return ibot_head_ != nullptr; }
  /// See model::VisionTransformer::set_before_unit(); here with the unit's full name.
  void before_backbone_unit(std::function<void(const std::string& unit)> call);

 private:
  NetworkConfig config_;
  model::VisionTransformer backbone_;
  model::ProjectionHead dino_head_;
  std::unique_ptr<model::ProjectionHead> ibot_head_;
};

}  // namespace allosaur::train
