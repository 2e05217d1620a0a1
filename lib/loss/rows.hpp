#pragma once
#include <algorithm>
#include <cstdint>

namespace allosaur::loss {

/// Calls body(first, rows) over [0, n) in chunks whose [rows, width] float32 temporary stays within 32 MiB, on a GPU
/// 512 MiB: the only thing of that width there is, and yet enough rows for the prototypes, which each chunk reads and
/// whose gradient it writes, to be worth their memory traffic (and on a GPU to keep all multiprocessors busy).
template <class Body>
void for_row_chunks(std::int64_t n, std::int64_t width, bool cuda, Body&& body) {
  const std::int64_t elements = std::int64_t{1} << (cuda ? 27 : 23);
  const std::int64_t step = std::max<std::int64_t>(1, elements / std::max<std::int64_t>(1, width));
  for (std::int64_t first = 0; first < n; first += step) body(first, std::min(step, n - first));
}

}  // namespace allosaur::loss
