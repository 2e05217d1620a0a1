#include "features/extract.hpp"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "data/loader.hpp"

namespace allosaur::features {
namespace {

using Reject = std::function<void(const std::string&, const std::string&)>;
using Progress = std::function<void(std::int64_t)>;

/// This rank's contiguous range, with room for `parts` vectors of `dim` values a row.
Features allocate(const comm::Communicator& group, const data::Dataset& dataset, std::int64_t parts, std::int64_t dim) {
  Features features;
  features.total = dataset.size();
  features.first = group.share(features.total).first;
  const std::int64_t rows = group.share(features.total).size();
  features.cls = at::zeros({rows, parts, dim}, at::kFloat);
  features.valid.assign(static_cast<std::size_t>(rows), true);
  features.labels.reserve(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; ++row) features.labels.push_back(dataset.label(features.first + row));
  return features;
}

/// Decodes the range batch by batch and has `describe(images, row)` write the features of rows [row, row + images).
void fill(Features& features, const data::Dataset& dataset, const ExtractConfig& config, const Reject& reject,
          const Progress& progress, const std::function<void(const at::Tensor&, std::int64_t)>& describe) {
  const at::NoGradGuard no_grad;
  const std::int64_t rows = features.cls.size(0);
  for (std::int64_t row = 0; row < rows; row += config.batch) {
    const std::int64_t count = std::min<std::int64_t>(config.batch, rows - row);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(count));
    std::iota(indices.begin(), indices.end(), features.first + row);
    const auto views =
        data::evaluation_views(dataset, indices, config.pixels, config.resize, config.crop, config.threads);
    describe(views.images, row);
    for (std::int64_t i = 0; i < count; ++i) {
      if (views.valid[static_cast<std::size_t>(i)]) continue;
      features.valid[static_cast<std::size_t>(row + i)] = false;
      features.cls.select(0, row + i).zero_();
      if (features.patch_mean.defined()) features.patch_mean.select(0, row + i).zero_();
    }
    for (const data::Rejected& rejected : views.rejected) {
      if (reject) reject(rejected.key, rejected.reason);
    }
    if (progress) progress(row + count);
  }
}

}  // namespace

Features extract(comm::Communicator& group, const model::VisionTransformer& backbone, const data::Dataset& dataset,
                 const ExtractConfig& config, const Reject& reject, const Progress& progress) {
  const std::int64_t dim = backbone.config().embed_dim;
  Features features = allocate(group, dataset, config.last_blocks, dim);
  if (config.average_patches) features.patch_mean = at::zeros({features.cls.size(0), dim}, at::kFloat);
  fill(features, dataset, config, reject, progress, [&](const at::Tensor& images, std::int64_t row) {
    const std::vector<model::VitOutput> blocks = backbone.intermediate_layers(images, config.last_blocks);
    for (std::size_t block = 0; block < blocks.size(); ++block) {
      features.cls.select(1, static_cast<std::int64_t>(block)).narrow(0, row, images.size(0)).copy_(blocks[block].cls);
    }
    if (config.average_patches) {
      features.patch_mean.narrow(0, row, images.size(0)).copy_(blocks.back().patches.mean(1));
    }
  });
  return features;
}

Features extract_pixels(comm::Communicator& group, const data::Dataset& dataset, const ExtractConfig& config,
                        const Reject& reject, const Progress& progress) {
  Features features = allocate(group, dataset, 1, std::int64_t{config.pixels.channels} * config.crop * config.crop);
  fill(features, dataset, config, reject, progress, [&](const at::Tensor& images, std::int64_t row) {
    features.cls.narrow(0, row, images.size(0)).copy_(images.view({images.size(0), 1, -1}));
  });
  return features;
}

}  // namespace allosaur::features
