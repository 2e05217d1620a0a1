#include "jobs/kept_features.hpp"

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "io/sharded_array.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMostBlocks = 64, kSmallestBlock = 64;

/// The blocks of a list of images: the same for any number of ranks.
struct Blocks {
  fs::path stem;
  std::string identity;
  std::int64_t total, length;

  std::int64_t count() const { return std::max<std::int64_t>(1, (total + length - 1) / length); }
  comm::Range images(std::int64_t block) const { return {block * length, std::min(total, (block + 1) * length)}; }
  fs::path index(std::int64_t block) const { return stem.string() + fmt::format("-{:05}.h5", block); }
  std::string identity_of(std::int64_t block) const {
    return fmt::format("{} images {} to {}", identity, images(block).first, images(block).last);
  }
  bool holds(std::int64_t block) const {
    return fs::exists(index(block)) && io::ShardedReader(index(block)).text_attribute("identity") == identity_of(block);
  }
};

void write(comm::Communicator& world, const Blocks& blocks, std::int64_t block, const Arrays& rows) {
  io::ShardedWriter writer(world, blocks.index(block));
  for (const auto& [name, values] : rows) writer.write(name, values);
  writer.set_attribute("identity", blocks.identity_of(block));
  writer.publish();
}

/// Local. The rows `wanted`, from the blocks that hold them.
Arrays read(const Blocks& blocks, comm::Range wanted) {
  Arrays result;
  for (std::int64_t block = 0; block < blocks.count(); ++block) {
    const comm::Range images = blocks.images(block);
    const std::int64_t from = std::max(images.first, wanted.first), to = std::min(images.last, wanted.last);
    if (from >= to && block > 0) continue;  // the first tells the shapes
    const io::ShardedReader reader(blocks.index(block));
    for (const std::string& name : reader.names()) {
      const std::int64_t count = std::max<std::int64_t>(0, to - from);
      const at::Tensor rows = reader.read(name, count == 0 ? 0 : from - images.first, count);
      at::Tensor& all = result[name];
      if (!all.defined()) {
        std::vector<std::int64_t> shape = rows.sizes().vec();
        shape[0] = wanted.size();
        all = at::empty(shape, rows.options());
      }
      if (count > 0) all.narrow(0, from - wanted.first, count).copy_(rows);
    }
  }
  return result;
}

std::string identity_of(const std::string& fingerprint, const features::ExtractConfig& config,
                        const std::string& images) {
  const data::PixelConfig& pixels = config.pixels;
  return fmt::format("{} {}/{} {} {} {} {} {} {} {}", fingerprint, config.resize, config.crop, config.last_blocks,
                     config.average_patches, pixels.channels, fmt::join(pixels.mean, ","),
                     fmt::join(pixels.deviation, ","), fmt::join(pixels.range16, ","), images);
}

}  // namespace

std::optional<Arrays> keep_rows(Context& context, const fs::path& stem, const std::string& identity, std::int64_t total,
                                const ComputeRows& compute) {
  comm::Communicator& world = context.world;
  const Blocks blocks{stem, identity, total, std::max(kSmallestBlock, (total + kMostBlocks - 1) / kMostBlocks)};
  const std::string title = stem.filename().string() + " features";
  const std::string present = comm::on_root(world, [&] {
    core::make_directory(stem.parent_path());
    std::string found;
    for (std::int64_t block = 0; block < blocks.count(); ++block) found += blocks.holds(block) ? 'x' : ' ';
    return found;
  });
  std::int64_t kept = 0;
  for (std::size_t block = 0; block < present.size(); ++block)
    if (present[block] == 'x') kept += blocks.images(static_cast<std::int64_t>(block)).size();
  if (kept > 0) {
    context.log.info("{}: those of {} of {} images are in {} already", title, kept, total, stem.parent_path().string());
  }

  if (kept < total) {
    core::Progress bar(context.log, title, total, "images", kept);
    for (std::int64_t block = 0; block < blocks.count(); ++block) {
      if (present[static_cast<std::size_t>(block)] == 'x') continue;
      if (world.max(context.stop.requested()) != 0) return {};
      const comm::Range images = blocks.images(block), share = world.share(images.size());
      const auto rows = comm::coordinate(world, [&] {
        return compute({images.first + share.first, images.first + share.last}, [&](std::int64_t done) {
          context.watchdog.feed();
          bar.update(kept + done * world.size());
        });
      });
      if (world.max(!rows) != 0) return {};
      write(world, blocks, block, *rows);
      context.watchdog.feed();
      kept += images.size();
      bar.update(kept);
    }
    bar.finish();
  }
  return comm::coordinate(world, [&] { return read(blocks, world.share(total)); });
}

std::optional<features::Features> keep_features(Context& context, const model::VisionTransformer& backbone,
                                                const std::string& fingerprint, const FeatureSource& source,
                                                const features::ExtractConfig& config, RejectedList& rejected) {
  const data::Dataset& images = source.images;
  const auto compute = [&](comm::Range rows,
                           const std::function<void(std::int64_t)>& progress) -> std::optional<Arrays> {
    features::Hooks hooks;
    hooks.reject = [&](const std::string& key, const std::string& reason) {
      rejected.add(source.key_prefix + key, reason);
    };
    hooks.progress = progress;
    hooks.stop = [&] { return context.stop.requested(); };
    const features::Features found = features::extract(backbone, images, rows, config, hooks);
    if (!found.complete) return {};
    Arrays arrays{{"cls", found.cls}, {"area", at::tensor(found.area, at::kLong)}};
    if (found.patch_mean.defined()) arrays["patch_mean"] = found.patch_mean;
    for (const auto& [name, values] : arrays) {
      if (values.isfinite().all().item<bool>()) continue;
      throw core::NumericalError(
          fmt::format("The {} features are not finite on rank {}: the weights are damaged, or their training has "
                      "diverged. Give those of an earlier checkpoint.",
                      source.name, context.world.rank()));
    }
    return arrays;
  };
  const auto kept = keep_rows(context, source.directory / "features" / source.name,
                              identity_of(fingerprint, config, source.images_identity), images.size(), compute);
  if (!kept) return {};
  features::Features result{.cls = kept->at("cls"), .patch_mean = {}, .labels = {}, .area = {}};
  if (config.average_patches) result.patch_mean = kept->at("patch_mean");
  const comm::Range rows = context.world.share(images.size());
  const auto* area = kept->at("area").const_data_ptr<std::int64_t>();
  result.area.assign(area, area + rows.size());
  for (std::int64_t row = 0; row < rows.size(); ++row) {
    result.labels.push_back(images.label(rows.first + row));
    if (area[row] == 0) rejected.count(source.key_prefix + images.key(rows.first + row));
  }
  return result;
}

}  // namespace allosaur::jobs
