#pragma once
#include <cmath>

#include "kernels/kernels.hpp"

namespace allosaur::kernels {

/// What an update multiplies with, worked out once in double.
struct UpdateFactors {
  explicit UpdateFactors(const AdamWEma& k)
      : gradient_scale(static_cast<float>(k.gradient_scale)),
        keep(static_cast<float>(1 - k.lr * k.weight_decay)),
        beta2(static_cast<float>(k.beta2)),
        rate1(static_cast<float>(1 - k.beta1)),
        rate2(static_cast<float>(1 - k.beta2)),
        eps(static_cast<float>(k.eps)),
        inverse_root2(static_cast<float>(1 / std::sqrt(k.correction2))),
        step(static_cast<float>(k.lr / k.correction1)),
        teacher_rate(static_cast<float>(1 - k.teacher_momentum)) {}

  float gradient_scale, keep, beta2, rate1, rate2, eps, inverse_root2, step, teacher_rate;
};

}  // namespace allosaur::kernels
