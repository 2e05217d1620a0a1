#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"
#include "data/loader.hpp"
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

/// Decoded evaluation views, in host memory as bytes: kept for later extractions of the same data sets, which must
/// outlive it, with the same view, batch and rows. Batches beyond `max_bytes` are decoded every time.
class KeptViews {
 public:
  explicit KeptViews(std::int64_t max_bytes) : room_(max_bytes) {}
  std::int64_t room() const noexcept { return room_; }  ///< bytes left
  /// The views of the batch from a row on: those that are kept, else those that decode() gives.
  data::Views get(const data::Dataset& dataset, std::int64_t row, const std::function<data::Views()>& decode);

 private:
  std::int64_t room_;
  std::map<std::pair<const data::Dataset*, std::int64_t>, data::Views> batches_;
};

/// What extraction tells and asks between batches, on the caller's thread; any may be empty.
struct Hooks {
  std::function<void(const std::string& key, const std::string& reason)> reject;  ///< a broken image, in order
  std::function<void(std::int64_t done)> progress;
  std::function<bool()> stop;  ///< whether to leave early
  KeptViews* views = nullptr;  ///< where the decoded images are kept
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
