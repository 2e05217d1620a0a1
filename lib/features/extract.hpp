#pragma once
#include <cstdint>
#include <functional>
#include <string>
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

/// The features of consecutive images of a data set, in host memory.
struct Features {
  at::Tensor cls;                    // f32 [rows, last_blocks, D], shallow to deep, after the final norm
  at::Tensor patch_mean;             // f32 [rows, D], or undefined
  std::vector<std::int64_t> labels;  // [rows]
  std::vector<std::int64_t> area;    // [rows] width times height of the image; 0: it was rejected (its rows are zero)
  bool complete = true;              // false: stopped before the end, and of no use
};

/// What extraction tells and asks between batches, on the caller's thread; any may be empty.
struct Hooks {
  std::function<void(const std::string& key, const std::string& reason)> reject;  ///< a broken image, in order
  std::function<void(std::int64_t done)> progress;
  std::function<bool()> stop;  ///< whether to leave early
};

/// Local. A frozen backbone over the images `rows` of a data set. Images are moved to the backbone's device. Throws
/// core::UsageError when the backbone reads images of other channels.
Features extract(const model::VisionTransformer& backbone, const data::Dataset& dataset, comm::Range rows,
                 const ExtractConfig& config, const Hooks& hooks = {});

/// Local. The evaluation view itself as the feature: `cls` is f32 [rows, 1, channels * crop * crop]. The baseline that
/// a backbone has to beat; `last_blocks` and `average_patches` mean nothing here.
Features extract_pixels(const data::Dataset& dataset, comm::Range rows, const ExtractConfig& config,
                        const Hooks& hooks = {});

}  // namespace allosaur::features
