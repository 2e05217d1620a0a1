#pragma once
#include <algorithm>
#include <cstdint>

namespace allosaur::kernels::cpu {

/// Calls body(begin, end) for pieces of at most `grain` of [0, n), over OpenMP's threads. The pieces do not depend on
/// the number of threads.
template <class Body>
void for_pieces(std::int64_t n, std::int64_t grain, const Body& body) {
  const std::int64_t pieces = (n + grain - 1) / grain;
#pragma omp parallel for schedule(static) if (pieces > 1)
  for (std::int64_t i = 0; i < pieces; ++i) body(i * grain, std::min(n, (i + 1) * grain));
}

/// Elements that are worth a thread's attention: 64 KiB of float32, half of a first-level cache or less.
inline constexpr std::int64_t kGrain = 16384;

}  // namespace allosaur::kernels::cpu
