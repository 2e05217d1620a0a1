#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::curation {

struct RetrievalConfig {
  std::int64_t k = 4;       ///< nearest pool images of each curated image (the paper: 4, or 32 for ImageNet-1k)
  std::int64_t target = 0;  ///< grow k until the union holds at least this many images, or all; 0: k as it is
};

/// A retrieved image of this rank's part of the pool.
struct Retrieved {
  std::int64_t place;    ///< row of `pool` on this rank
  std::int64_t nearest;  ///< the curated image it is most similar to, as numbered by `query_ids`
  float similarity;
};

struct Retrieval {
  std::vector<Retrieved> images;  // by place
  std::int64_t total = 0;         // over all ranks
  std::int64_t k = 0;             // what was used
};

/// Collective. Sample-based retrieval (DINOv2, section 3): the union over all curated images of their k nearest images
/// in the pool. `queries` f32 [q, D] and `pool` f32 [p, D], unit length, are this rank's (any may be empty, but
/// a rank has a query); `query_ids` names the queries. `after_block` is called now and then to show that work goes on.
/// Ties go to the pool image on the lower rank and place. Cost a rank: exact searches (search/top_k.hpp), one, or with
/// a target as many as k has to double; 32 bytes for each of a query's k neighbours.
Retrieval retrieve(comm::Communicator& group, const at::Tensor& queries, std::span<const std::int64_t> query_ids,
                   const at::Tensor& pool, const RetrievalConfig& config,
                   const std::function<void()>& after_block = {});

}  // namespace allosaur::curation
