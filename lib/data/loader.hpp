#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "data/augment.hpp"
#include "data/dataset.hpp"
#include "data/masks.hpp"

namespace allosaur::data {

struct LoaderConfig {
  AugmentConfig augment;
  MaskConfig mask;
  std::uint64_t seed = 0;
  std::int64_t global_batch = 64;  ///< images an iteration over all ranks
  std::int64_t group = 64;         ///< images a group (batch_size_per_gpu): the grain of mask quotas
  int workers = 1;                 ///< threads
  int prefetch = 4;                ///< batches decoded ahead
  /// Sizes of the sources that the data set joins, and their weights (see Sampler); both empty: one source.
  std::vector<std::int64_t> source_sizes;
  std::vector<double> source_weights;
  bool pinned =
      false;  ///< crops and recipes in page-locked memory, where there is CUDA: to be copied to a GPU while it works
  double max_rejected = 0.01;  ///< fraction of the distinct files seen that may be broken
  /// Told of every broken file, once, as it is met. From worker threads, one at a time; may be empty.
  std::function<void(const std::string& key, const std::string& reason)> reject;
};

/// This rank's part of one iteration: n = global_batch / ranks images.
struct Batch {
  std::int64_t iteration = 0;
  at::Tensor global_crops;        // AugmentConfig::written_type() [2n, channels, S, S]; crop-major
  at::Tensor local_crops;         // as these [L*n, channels, s, s]; undefined when there are no local crops
  at::Tensor global_recipes;      // uint8 [2n, sizeof(kernels::CropRecipe)]: of global_crops; finished: undefined
  at::Tensor local_recipes;       // as these [L*n, ...]; undefined when there are no local crops
  at::Tensor masks;               // bool [2n, N]; groups of `group` images are masked independently
  std::vector<std::string> keys;  // n sample names, for error reports
};

/// Worker threads, bounded prefetch, delivery in order. What iteration i holds is a pure function of (seed, i,
/// position): it depends neither on the number of ranks nor on threads, and starting late costs nothing. Global slot j
/// of iteration i has position i * global_batch + j and holds the sample that Sampler places there; rank r has the
/// consecutive slots [r * n, (r + 1) * n). A broken image is replaced as Sampler::replacement() says, and recorded in
/// rejected(). next() throws core::InputError when this rank alone has met more than max_rejected of the distinct files
/// it has asked for, judged once these are 1000 or the whole data set; the job reduces rejected() and distinct_seen()
/// over ranks for its own verdict.
class Loader {
 public:
  /// Delivers iterations first, first+1, ... of rank `rank` of `ranks`. Throws core::UsageError when the batch does not
  /// divide by ranks or groups.
  Loader(std::shared_ptr<const Dataset> dataset, const LoaderConfig& config, int rank, int ranks, std::int64_t first);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;
  /// Blocks for the next batch; rethrows what a worker threw. For one thread at a time.
  Batch next();
  std::vector<Rejected> rejected() const;  ///< so far, on this rank, each file once
  std::int64_t distinct_seen() const;      ///< distinct samples asked for so far on this rank

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The evaluation transform: shorter side resized to `resize` (bicubic, antialiased), centre crop to `crop` (at most
/// `resize`), normalised. Returns f32 [channels, crop, crop]; throws core::InputError when the image is broken.
at::Tensor evaluation_view(const Sample& sample, const PixelConfig& pixels, int resize, int crop);

/// The evaluation views of many samples, on `threads` threads, as bytes that normalise() makes images of.
struct Views {
  at::Tensor pixels;               // uint8 [indices, channels, crop, crop]; zeros where the image was rejected
  std::vector<std::int64_t> area;  // [indices] width times height of the image; 0 where it was rejected
  std::vector<Rejected> rejected;  // in the order of `indices`
};
Views evaluation_views(const Dataset& dataset, std::span<const std::int64_t> indices, const PixelConfig& pixels,
                       int resize, int crop, int threads);
/// f32, of the same shape.
at::Tensor normalise(const at::Tensor& pixels, const PixelConfig& config, int threads);

}  // namespace allosaur::data
