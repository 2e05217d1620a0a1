#pragma once
#include <algorithm>
#include <cstdint>

namespace allosaur::loss {

/// Calls body(first, rows) over [0, n) in chunks small enough that a [rows, prototypes] float32 temporary stays near 4 MiB:
/// inside the last-level cache, and the only thing of that width there is.
template <class Body> void for_row_chunks(std::int64_t n, std::int64_t prototypes, Body&& body) {
  constexpr std::int64_t kElements = 1 << 20;
  const std::int64_t step = std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, prototypes));
  for (std::int64_t first = 0; first < n; first += step) body(first, std::min(step, n - first));
}

}  // namespace allosaur::loss
