#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::curation {

/// What becomes of an image of the pool.
enum class Fate : std::uint8_t {
  kept,
  rejected,        ///< could not be decoded
  duplicate,       ///< another image of its component represents it
  reference_copy,  ///< its component holds an image of a reference set
};

struct DeduplicationConfig {
  std::int64_t k = 64;             ///< neighbours of each image (DINOv2, section 3), at most all others
  double duplicate_threshold = 0;  ///< edges between images of the pool are more similar than this
  double reference_threshold = 0;  ///< edges of the relative deduplication; at most the above, so that its components
                                   ///< hold those of the self-deduplication
};

struct Deduplication {
  // One entry for each of this rank's rows; rows of reference sets are `kept` unless rejected.
  std::vector<Fate> fates;
  std::vector<std::int64_t> cause;  // the row that stays in its place, or its component's first reference row; else -1
  // The same on every rank.
  std::int64_t edges = 0;                            // of the self-deduplication, each pair once
  double least_similarity = 0, mean_similarity = 0;  // of these
  std::map<std::int64_t, std::int64_t> components;   // number of components of each size in the pool, singles included
  std::int64_t rejected = 0, duplicates = 0, reference_copies = 0;  // images of the pool with each fate
};

/// Collective. Copies within the pool and of the reference images. Rows are numbered over ranks in rank order: rows
/// [0, pool) are the pool, the rest are references (curated images, test splits). `views` f32 [rows, V, D] are this
/// rank's, unit length, view 0 the whole image; the similarity of two images is the largest of one's views with the
/// other's whole image. `pixels` i64 [rows] is 0 for an image that was rejected.
///
/// The graph joins every image with those of its k nearest that are similar enough. Of each connected component of the
/// pool one image stays: the one with the most pixels (the original of its crops and reductions), the first of equals.
/// Then all images whose component, with the looser edges and including the references, holds a reference are dropped.
/// Exact and the same for any number of ranks. `after_block` is called now and then to show that work goes on. Cost a
/// rank: V exact searches of the whole table (search/top_k.hpp), components (search/components.hpp), and a few
/// exchanges of 24 bytes a row.
Deduplication deduplicate(comm::Communicator& group, const at::Tensor& views, const at::Tensor& pixels,
                          std::int64_t pool, const DeduplicationConfig& config,
                          const std::function<void()>& after_block = {});

/// Collective. Similarity of the images `mine` (rows of this rank, counted from its first) to their nearest other image
/// of the pool: f32 [n]; -inf where there is none.
at::Tensor nearest_in_pool(comm::Communicator& group, const at::Tensor& views, std::int64_t pool,
                           std::span<const std::int64_t> mine, const std::function<void()>& after_block = {});

}  // namespace allosaur::curation
