#include "train/crops.hpp"

#include <ATen/ATen.h>

#include "model/fused.hpp"

namespace allosaur::train {

CropFinisher::CropFinisher(const data::AugmentConfig& config, const at::Device& device) : type_(config.type) {
  const auto on_device = [&](const std::vector<double>& values) {
    return model::to_device(at::tensor(values, at::kFloat), device);
  };
  mean_ = on_device(config.pixels.mean);
  deviation_ = on_device(config.pixels.deviation);
}

at::Tensor CropFinisher::operator()(const at::Tensor& values, const at::Tensor& recipes) const {
  const at::Tensor finished = at::empty(values.sizes(), values.options().dtype(type_));
  const at::Tensor workspace =
      at::empty({values.size(0), values.size(2), values.size(3)}, values.options().dtype(at::kFloat));
  kernels::run(model::kernel_device(values),
               kernels::FinishCrops{.crops = values.size(0),
                                    .channels = values.size(1),
                                    .height = values.size(2),
                                    .width = values.size(3),
                                    .values = values.mutable_data_ptr<std::uint8_t>(),
                                    .recipes = static_cast<const kernels::CropRecipe*>(recipes.const_data_ptr()),
                                    .mean = mean_.const_data_ptr<float>(),
                                    .deviation = deviation_.const_data_ptr<float>(),
                                    .workspace = workspace.mutable_data_ptr<float>(),
                                    .type = model::kernel_type(finished),
                                    .output = finished.mutable_data_ptr()});
  return finished;
}

}  // namespace allosaur::train
