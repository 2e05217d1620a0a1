#pragma once
#include <cstdint>
#include <functional>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::search {

/// For each query the most similar database rows, best first.
struct Neighbours {
  at::Tensor similarity;  // f32 [q, k], descending; -inf where there are fewer than k
  at::Tensor index;       // i64 [q, k], global database rows; -1 where there are fewer than k
};

/// Collective. Exact inner-product search. `queries` f32 [q, D] and `database` f32 [m, D], in host memory, are this
/// rank's slices (any sizes, also empty); database rows are numbered over ranks in rank order. Ties go to the lower
/// index; k may exceed the database. `after_block`, where given, is called now and then on the caller's thread, to show
/// that work goes on. Cost a rank: the database travels once around the ring (4 * D * total / W bytes a step, W - 1
/// steps), 2 * q * D * total operations; memory three slices and 2 * q * k candidates of 16 bytes.
Neighbours exact_top_k(comm::Communicator& group, const at::Tensor& queries, const at::Tensor& database, std::int64_t k,
                       const std::function<void()>& after_block = {});

}  // namespace allosaur::search
