#pragma once
#include <ATen/ATen.h>

#include "core/random.hpp"
#include "evaluation/frozen.hpp"

namespace allosaur::testing {

/// Gaussian clouds, one a class: sample i has class i % classes. The same on every rank.
inline evaluation::Frozen clouds(std::int64_t samples, std::int64_t classes, std::int64_t blocks, std::int64_t dim,
                                 double spread, std::uint64_t seed) {
  evaluation::Frozen all{at::empty({samples, blocks, dim}, at::kFloat), at::empty({samples, dim}, at::kFloat),
                         at::arange(samples, at::kLong).remainder(classes)};
  for (std::int64_t i = 0; i < samples; ++i) {
    core::Random centre(3, core::Purpose::demo, static_cast<std::uint64_t>(i % classes));
    core::Random noise(seed, core::Purpose::demo, static_cast<std::uint64_t>(i), 1);
    const auto point = [&](const at::Tensor& out) {
      for (std::int64_t d = 0; d < out.numel(); ++d) {
        out.mutable_data_ptr<float>()[d] = static_cast<float>(centre.normal() + spread * noise.normal());
      }
    };
    point(all.cls[i]);
    point(all.patch_mean[i]);
  }
  return all;
}

/// This rank's rows: shares of very different size.
inline evaluation::Frozen share(const comm::Communicator& group, const evaluation::Frozen& all) {
  const std::int64_t total = all.labels.numel(), ranks = group.size();
  const auto begin = [&](std::int64_t rank) { return total * rank * rank / (ranks * ranks); };
  const std::int64_t first = begin(group.rank()), rows = begin(group.rank() + 1) - first;
  return {all.cls.narrow(0, first, rows), all.patch_mean.narrow(0, first, rows), all.labels.narrow(0, first, rows)};
}

/// Features of a network near initialisation: 1 plus a few units in the last place that tell the class.
inline evaluation::Frozen nearly_constant(std::int64_t samples, std::int64_t classes, std::uint64_t seed) {
  evaluation::Frozen all = clouds(samples, classes, 1, 16, 0.2, seed);
  all.cls.mul_(1e-6).add_(1);
  all.patch_mean.mul_(1e-6).add_(1);
  return all;
}

}  // namespace allosaur::testing
