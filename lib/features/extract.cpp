#include "features/extract.hpp"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace allosaur::features {
namespace {

/// With room for `parts` vectors of `dim` values a row.
Features allocate(const data::Dataset& dataset, comm::Range rows, std::int64_t parts, std::int64_t dim) {
  Features features;
  features.cls = at::zeros({rows.size(), parts, dim}, at::kFloat);
  features.area.assign(static_cast<std::size_t>(rows.size()), 0);
  features.labels.reserve(static_cast<std::size_t>(rows.size()));
  for (std::int64_t row = rows.first; row < rows.last; ++row) features.labels.push_back(dataset.label(row));
  return features;
}

/// Decodes the images from `first` on batch by batch and has `describe(images, row)` write the features of rows
/// [row, row + images).
void fill(Features& features, const data::Dataset& dataset, std::int64_t first, const ExtractConfig& config,
          const Hooks& hooks, const std::function<void(const at::Tensor&, std::int64_t)>& describe) {
  const at::NoGradGuard no_grad;
  const std::int64_t rows = features.cls.size(0);
  for (std::int64_t row = 0; row < rows; row += config.batch) {
    if (hooks.stop && hooks.stop()) {
      features.complete = false;
      return;
    }
    const std::int64_t count = std::min<std::int64_t>(config.batch, rows - row);
    std::vector<std::int64_t> indices(static_cast<std::size_t>(count));
    std::iota(indices.begin(), indices.end(), first + row);
    const auto decode = [&] {
      return data::evaluation_views(dataset, indices, config.pixels, config.resize, config.crop, config.threads);
    };
    const data::Views views = hooks.views != nullptr ? hooks.views->get(dataset, first + row, decode) : decode();
    describe(data::normalise(views.pixels, config.pixels, config.threads), row);
    std::copy(views.area.begin(), views.area.end(), features.area.begin() + row);
    for (std::int64_t i = 0; i < count; ++i) {
      if (views.area[static_cast<std::size_t>(i)] > 0) continue;
      features.cls.select(0, row + i).zero_();
      if (features.patch_mean.defined()) features.patch_mean.select(0, row + i).zero_();
    }
    for (const data::Rejected& rejected : views.rejected) {
      if (hooks.reject) hooks.reject(rejected.key, rejected.reason);
    }
    if (hooks.progress) hooks.progress(row + count);
  }
}

}  // namespace

data::Views KeptViews::get(const data::Dataset& dataset, std::int64_t row, const std::function<data::Views()>& decode) {
  const auto found = batches_.find({&dataset, row});
  if (found != batches_.end()) return found->second;
  data::Views views = decode();
  const auto bytes = static_cast<std::int64_t>(views.pixels.nbytes());
  if (bytes <= room_) {
    room_ -= bytes;
    batches_[{&dataset, row}] = views;
  }
  return views;
}

Features extract(const model::VisionTransformer& backbone, const data::Dataset& dataset, comm::Range rows,
                 const ExtractConfig& config, const Hooks& hooks) {
  const std::int64_t dim = backbone.config().embed_dim;
  Features features = allocate(dataset, rows, config.last_blocks, dim);
  if (config.average_patches) features.patch_mean = at::zeros({rows.size(), dim}, at::kFloat);
  const std::vector<int> last = backbone.last_blocks(config.last_blocks);
  fill(features, dataset, rows.first, config, hooks, [&](const at::Tensor& images, std::int64_t row) {
    const std::vector<model::VitOutput> blocks = backbone.intermediate_layers(images, last);
    for (std::size_t block = 0; block < blocks.size(); ++block) {
      features.cls.select(1, static_cast<std::int64_t>(block)).narrow(0, row, images.size(0)).copy_(blocks[block].cls);
    }
    if (config.average_patches) {
      features.patch_mean.narrow(0, row, images.size(0)).copy_(blocks.back().patches.mean(1));
    }
  });
  return features;
}

Features extract_pixels(const data::Dataset& dataset, comm::Range rows, const ExtractConfig& config,
                        const Hooks& hooks) {
  Features features = allocate(dataset, rows, 1, std::int64_t{config.pixels.channels} * config.crop * config.crop);
  fill(features, dataset, rows.first, config, hooks, [&](const at::Tensor& images, std::int64_t row) {
    features.cls.narrow(0, row, images.size(0)).copy_(images.view({images.size(0), 1, -1}));
  });
  return features;
}

}  // namespace allosaur::features
