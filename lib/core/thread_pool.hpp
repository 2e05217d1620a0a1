#pragma once
#include <cstdint>
#include <functional>

namespace allosaur::core {

/// Runs body(i) for i in [0, n) on up to `threads` threads (the caller's is one of them) and waits. The first exception
/// is rethrown after all threads have stopped. Indices are handed out one at a time: for uneven work such as decoding.
void parallel_for(int threads, std::int64_t n, const std::function<void(std::int64_t)>& body);

/// Cores this process may run on (its affinity mask).
int available_cores();

}  // namespace allosaur::core
