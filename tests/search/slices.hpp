#pragma once
#include <cstdint>

#include "testing.hpp"

namespace allosaur::testing {

struct Slice {
  std::int64_t first, rows;
};

/// This rank's part of `total` rows: shares of 1, 0, 3, 4, ... so that rank 1 has none.
inline Slice uneven_slice(std::int64_t total) {
  const auto share_of_ranks_before = [](std::int64_t rank) { return rank * (rank + 1) / 2 - (rank > 1 ? 2 : 0); };
  const auto edge = [&](std::int64_t rank) {
    return total * share_of_ranks_before(rank) / share_of_ranks_before(world().size());
  };
  return {edge(world().rank()), edge(world().rank() + 1) - edge(world().rank())};
}

}  // namespace allosaur::testing
