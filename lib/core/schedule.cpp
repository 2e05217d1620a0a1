#include "core/schedule.hpp"

#include <cmath>
#include <numbers>

namespace allosaur::core {

double LinearSchedule::value_at(std::int64_t iteration) const {
  if (iteration + 1 >= warmup) return warmup == 1 && iteration == 0 ? start : final;
  return start + (final - start) * static_cast<double>(iteration) / static_cast<double>(warmup - 1);
}

double CosineSchedule::value_at(std::int64_t iteration) const {
  if (iteration < freeze) return 0;
  if (iteration >= total) return final;
  if (iteration < warmup) return LinearSchedule{start, base, warmup}.value_at(iteration);
  const double progress = static_cast<double>(iteration - warmup) / static_cast<double>(total - warmup);
  return final + 0.5 * (base - final) * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace allosaur::core
