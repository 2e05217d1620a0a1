#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "curation/descriptor.hpp"
#include "data/dataset.hpp"

namespace allosaur::curation {

/// Called on the caller's thread for an image that cannot be used.
using Reject = std::function<void(const std::string& key, const std::string& reason)>;

/// What the descriptor is fitted to and its threshold calibrated with: images of the pool and synthetic copies of them.
/// Images that cannot be decoded are left out.
struct CopySample {
  std::vector<std::int64_t> rows;  // [n] which images
  at::Tensor views;                // f32 [n, kViews, kThumbnailWidth]
  at::Tensor fit_copies;           // f32 [n, kSyntheticKinds, kThumbnailWidth], whole views
  at::Tensor test_copies;          // the same shape: other copies, for the threshold
};

/// Local. Decodes the images `rows` of `dataset`, as RGB (see io::DecodeOptions for `range16`), and makes copies of
/// them, on `threads` threads: a pure function of the rows.
CopySample sample_copies(const data::Dataset& dataset, std::span<const std::int64_t> rows,
                         const std::array<int, 2>& range16, int threads,
                         const std::function<void(std::int64_t)>& progress);

/// Of each original of the sample, how similar the test copies are to its most similar view: f32 [n * kSyntheticKinds].
at::Tensor copy_similarities(const CopyDescriptor& descriptor, const CopySample& sample);

/// Copy descriptors of consecutive images.
struct CopyViews {
  at::Tensor views;   // f32 [n, V, D], unit length; view 0 is the whole image, others are what its copies may show
  at::Tensor pixels;  // i64 [n], width times height; 0 where the image was rejected (its views are zero)
};

/// Local. Describes the images [first, first + count) of `dataset`, decoded likewise, on `threads` threads.
CopyViews describe_images(const CopyDescriptor& descriptor, const data::Dataset& dataset, std::int64_t first,
                          std::int64_t count, const std::array<int, 2>& range16, int threads, const Reject& reject);

}  // namespace allosaur::curation
