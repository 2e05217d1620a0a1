#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"
#include "data/pixels.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::features {

struct ExtractConfig {
  data::PixelConfig pixels = {};  ///< its channels are those that the backbone reads
  int resize = 256, crop = 224;   ///< evaluation view
  int batch = 64;
  int threads = 1;               ///< decoding threads
  int last_blocks = 1;           ///< n of intermediate_layers
  bool average_patches = false;  ///< also the mean of the last block's patch tokens
};

/// This rank's rows of the features of a data set: a contiguous range [first, first + rows) of [0, total).
struct Features {
  at::Tensor cls;                    // f32 [rows, last_blocks, D], shallow to deep, after the final norm
  at::Tensor patch_mean;             // f32 [rows, D], or undefined
  std::vector<std::int64_t> labels;  // [rows]
  std::vector<bool> valid;           // [rows]; false where the image was rejected (its rows are zero)
  std::int64_t first = 0, total = 0;
};

/// Collective. A frozen backbone over a whole data set, split over ranks in contiguous ranges. Broken images are
/// rejected through `reject(key, reason)`, in order; `progress(done)` is called after each batch with this rank's
/// count; both on the caller's thread, and either may be empty. Cost a rank: decoding and forward of its rows, no
/// communication.
Features extract(comm::Communicator& group, const model::VisionTransformer& backbone, const data::Dataset& dataset,
                 const ExtractConfig& config, const std::function<void(const std::string&, const std::string&)>& reject,
                 const std::function<void(std::int64_t)>& progress = {});

/// Collective. The evaluation view itself as the feature: `cls` is f32 [rows, 1, channels * crop * crop]. The baseline
/// that a backbone has to beat; `last_blocks` and `average_patches` mean nothing here.
Features extract_pixels(comm::Communicator& group, const data::Dataset& dataset, const ExtractConfig& config,
                        const std::function<void(const std::string&, const std::string&)>& reject,
                        const std::function<void(std::int64_t)>& progress = {});

}  // namespace allosaur::features
