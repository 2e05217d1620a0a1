#include "model/parameter.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "core/files.hpp"
#include "core/random.hpp"

namespace allosaur::model {

void initialise(const Parameter& parameter, const std::string& prefix, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  at::Tensor values = at::empty(parameter.tensor->sizes(), at::kFloat);
  const std::span<float> out(values.data_ptr<float>(), static_cast<std::size_t>(values.numel()));
  const std::string name = prefix + parameter.name;
  core::Random random(seed, core::Purpose::initialisation, core::hash_text(name));
  switch (parameter.init) {
    case Init::zeros:
      std::ranges::fill(out, 0.0F);
      break;
    case Init::ones:
      std::ranges::fill(out, 1.0F);
      break;
    case Init::layer_scale:
      std::ranges::fill(out, static_cast<float>(parameter.scale));
      break;
    case Init::truncated_normal:  // deviation 0.02, cut off at +-2: a hundred deviations, so in effect not truncated
      std::ranges::generate(out, [&] { return std::clamp(static_cast<float>(0.02 * random.normal()), -2.0F, 2.0F); });
      break;
    case Init::tiny_normal:
      std::ranges::generate(out, [&] { return static_cast<float>(1e-6 * random.normal()); });
      break;
    case Init::fan_in_uniform:
      std::ranges::generate(out, [&] { return static_cast<float>(random.uniform(-parameter.scale, parameter.scale)); });
      break;
  }
  parameter.tensor->copy_(values);
}

}  // namespace allosaur::model
