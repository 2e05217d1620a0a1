#include "train/network.hpp"

namespace allosaur::train {

namespace {

constexpr const char* kBackbone = "backbone.";

}

Network::Network(const NetworkConfig& config)
    : config_(config), backbone_(config.backbone), dino_head_(config.dino_head) {
  if (config.separate_ibot_head) ibot_head_ = std::make_unique<model::ProjectionHead>(config.ibot_head);
  backbone_.set_fast_products(config.fast_products);
  backbone_.set_checkpoint_activations(config.checkpoint_activations);
  dino_head_.set_fast_products(config.fast_products);
  if (ibot_head_) ibot_head_->set_fast_products(config.fast_products);
}

std::vector<NetworkParameter> Network::parameters() {
  std::vector<NetworkParameter> all;
  const auto add = [&all](auto& module, const char* prefix, Submodule submodule) {
    for (model::Parameter& parameter : module.parameters()) all.push_back({std::move(parameter), prefix, submodule});
  };
  add(backbone_, kBackbone, Submodule::backbone);
  add(dino_head_, "dino_head.", Submodule::dino_head);
  if (ibot_head_) add(*ibot_head_, "ibot_head.", Submodule::ibot_head);
  return all;
}

void Network::before_backbone_unit(std::function<void(const std::string&)> call) {
  if (!call) return backbone_.set_before_unit(nullptr);
  backbone_.set_before_unit([call = std::move(call)](const std::string& unit) { call(kBackbone + unit); });
}

}  // namespace allosaur::train
