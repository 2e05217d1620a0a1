#include "loss/koleo.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace allosaur::loss {

at::Tensor koleo(const at::Tensor& features, std::int64_t group) {
  constexpr double kEps = 1e-8;
  const std::int64_t dim = features.size(1);
  const at::Tensor x = features.to(at::kFloat);
  const at::Tensor unit = (x / at::norm(x, 2, 1, true).clamp_min(kEps)).view({-1, group, dim});  // [G, B, D]
  at::Tensor nearest;                                                                            // i64 [G, B]
  {
    const at::NoGradGuard no_grad;
    at::Tensor similarity = at::bmm(unit, unit.transpose(1, 2));
    similarity.diagonal(0, 1, 2).fill_(-1);
    nearest = similarity.argmax(2);
  }
  const at::Tensor neighbour = unit.gather(1, nearest.unsqueeze(2).expand({-1, -1, dim}));
  const at::Tensor distance = at::norm(unit - neighbour + kEps, 2, 2);  // [G, B]
  return -(distance + kEps).log().mean();
}

}  // namespace allosaur::loss
