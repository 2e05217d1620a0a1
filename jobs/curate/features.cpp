#include "jobs/curate/features.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <vector>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "curation/deduplicate.hpp"
#include "curation/describe.hpp"
#include "io/sharded_array.hpp"
#include "jobs/run_directory.hpp"
#include "model/weights.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSampleImages = 2048;                  // of the pool, to fit and calibrate the descriptor with
constexpr std::int64_t kBlock = 1024;                         // images of a rank between two looks at the stop signal
constexpr const char* kDescriptorName = "thumbnail views 1";  // changes with what is computed

/// Collective. The array at `index` if it was written for `identity`; nothing if there is none, or it is another's.
std::optional<io::ShardedReader> find_features(comm::Communicator& world, const fs::path& index,
                                               const std::string& identity) {
  const std::string found = comm::on_root(world, [&] {
    if (!fs::exists(index)) return std::string();
    return io::ShardedReader(index).text_attribute("identity");
  });
  if (found != identity) return {};
  return comm::coordinate(world, [&] { return io::ShardedReader(index); });
}

/// Collective. Spread evenly over the pool; of these, the rows this rank holds.
std::vector<std::int64_t> sample_rows(const comm::Range& rows, std::int64_t pool) {
  const std::int64_t count = std::min(pool, kSampleImages);
  std::vector<std::int64_t> sample;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = i * pool / count;
    if (row >= rows.first && row < rows.last) sample.push_back(row);
  }
  return sample;
}

/// Collective. The finite values of all ranks, in rank order.
std::vector<float> gather_finite(comm::Communicator& world, const at::Tensor& mine) {
  const at::Tensor kept = mine.masked_select(mine.isfinite());
  const std::vector<std::int64_t> counts = world.gather_all(kept.numel());
  std::int64_t total = 0;
  for (const std::int64_t count : counts) total += count;
  std::vector<float> all(static_cast<std::size_t>(total));
  world.all_gather_counts(kept, std::span(all), counts);
  return all;
}

nlohmann::json to_json(const curation::Calibration& calibration) {
  return {{"threshold", calibration.threshold},
          {"copies_missed", calibration.copies_missed},
          {"strangers_joined", calibration.strangers_joined}};
}

curation::Calibration calibration_from(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text);
  return {json.at("threshold"), json.at("copies_missed"), json.at("strangers_joined")};
}

}  // namespace

std::string identify(comm::Communicator& world, const data::Dataset& dataset) {
  const comm::Range rows = world.share(dataset.size());
  std::uint64_t sum = 0;  // of hashes, which does not depend on how rows are split over ranks
  for (std::int64_t row = rows.first; row < rows.last; ++row) {
    const std::string key = dataset.key(row);
    sum += core::hash_text(key, static_cast<std::uint64_t>(row));
  }
  world.all_reduce(std::span(&sum, 1), comm::ReduceOp::sum);
  return core::hash_hex(sum);
}

std::optional<CopyFeatures> training_free_features(Context& context, const data::Joined& sources, std::int64_t pool,
                                                   const std::array<int, 2>& range16, const fs::path& directory) {
  comm::Communicator& world = context.world;
  const comm::Range rows = world.share(sources.size());
  const fs::path index = directory / "features" / "copy.h5";
  const std::string identity = std::string(kDescriptorName) + " " + identify(world, sources);
  if (const auto earlier = find_features(world, index, identity)) {
    context.log.info("copy descriptors: read from {}", index.string());
    return comm::coordinate(world, [&] {
      return CopyFeatures{earlier->read("views", rows.first, rows.size()),
                          earlier->read("pixels", rows.first, rows.size()),
                          calibration_from(earlier->text_attribute("calibration"))};
    });
  }

  const std::vector<std::int64_t> wanted = sample_rows(rows, pool);
  curation::CopySample sample;
  {
    core::Progress bar(context.log, "copies of sample images", static_cast<std::int64_t>(wanted.size()),
                       "images a rank");
    sample = comm::coordinate(world, [&] {
      return curation::sample_copies(sources, wanted, range16, context.threads, [&](std::int64_t done) {
        context.watchdog.feed();
        bar.update(done);
      });
    });
    bar.finish();
  }
  const std::int64_t usable = world.sum(static_cast<std::int64_t>(sample.rows.size()));
  comm::coordinate(world, [&] {
    if (usable == 0) throw core::InputError("None of the images that were sampled from curate.pool could be decoded.");
  });
  const auto descriptor = curation::fit_copy_descriptor(world, sample.views, sample.fit_copies);

  RejectedList rejected(context, directory);
  std::vector<curation::CopyViews> blocks;
  core::Progress bar(context.log, "copy descriptors", sources.size(), "images");
  const std::int64_t most_rows = world.max(rows.size());
  for (std::int64_t begin = 0; begin < most_rows; begin += kBlock) {
    const std::int64_t from = std::min(begin, rows.size()), count = std::min(kBlock, rows.size() - from);
    blocks.push_back(comm::coordinate(world, [&] {
      return curation::describe_images(
          descriptor, sources, rows.first + from, count, range16, context.threads,
          [&](const std::string& key, const std::string& reason) { rejected.add(key, reason); });
    }));
    context.watchdog.feed();
    std::array<std::int64_t, 2> done_and_stop{from + count, context.stop.requested() ? 1 : 0};
    world.all_reduce(std::span(done_and_stop), comm::ReduceOp::sum);
    bar.update(done_and_stop[0]);
    if (done_and_stop[1] > 0) return {};
  }
  bar.finish();
  rejected.judge(rows.size(), context.options.number("run.max_rejected"));

  std::vector<at::Tensor> views, pixels;
  for (curation::CopyViews& block : blocks) {
    views.push_back(std::move(block.views));
    pixels.push_back(std::move(block.pixels));
  }
  blocks.clear();
  CopyFeatures result{at::cat(views), at::cat(pixels), {}};
  std::vector<std::int64_t> mine;
  for (const std::int64_t row : sample.rows) mine.push_back(row - rows.first);
  const at::Tensor nearest =
      curation::nearest_in_pool(world, result.views, pool, mine, [&] { context.watchdog.feed(); });
  result.calibration = curation::calibrate(gather_finite(world, curation::copy_similarities(descriptor, sample)),
                                           gather_finite(world, nearest));

  comm::coordinate(world, [&] { core::make_directory(index.parent_path()); });
  io::ShardedWriter writer(world, index);
  writer.write("views", result.views);
  writer.write("pixels", result.pixels);
  writer.set_attribute("identity", identity);
  writer.set_attribute("calibration", to_json(*result.calibration).dump());
  writer.publish();
  return result;
}

SimilarityFeatures backbone_features(Context& context, model::VisionTransformer& backbone, const data::Joined& sources,
                                     const features::ExtractConfig& config, const fs::path& directory,
                                     const std::string& name) {
  comm::Communicator& world = context.world;
  const comm::Range rows = world.share(sources.size());
  const fs::path index = directory / "features" / (name + ".h5");
  const std::string identity =
      fmt::format("{} {}/{} {}", model::fingerprint(backbone), config.resize, config.crop, identify(world, sources));
  if (const auto earlier = find_features(world, index, identity)) {
    context.log.info("{} features: read from {}", name, index.string());
    return {comm::coordinate(world, [&] { return earlier->read("rows", rows.first, rows.size()); }), rows.first};
  }
  RejectedList rejected(context, directory);
  core::Progress bar(context.log, name + " features", rows.size(), "images a rank");
  const features::Features extracted = features::extract(
      world, backbone, sources, config,
      [&](const std::string& key, const std::string& reason) { rejected.add(key, reason); },
      [&](std::int64_t done) {
        context.watchdog.feed();
        bar.update(done);
      });
  bar.finish();
  rejected.judge(rows.size(), context.options.number("run.max_rejected"));
  const at::Tensor tokens = extracted.cls.select(1, 0);
  SimilarityFeatures result{tokens / tokens.norm(2, {1}, true).clamp_min(std::numeric_limits<float>::min()),
                            rows.first};

  comm::coordinate(world, [&] { core::make_directory(index.parent_path()); });
  io::ShardedWriter writer(world, index);
  writer.write("rows", result.rows);
  writer.set_attribute("identity", identity);
  writer.publish();
  return result;
}

}  // namespace allosaur::jobs
