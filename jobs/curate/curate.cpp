#include "jobs/curate/curate.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "curation/deduplicate.hpp"
#include "curation/descriptor.hpp"
#include "curation/retrieve.hpp"
#include "curation/thumbnail.hpp"
#include "data/joined.hpp"
#include "data/packed.hpp"
#include "data/packed_writer.hpp"
#include "data/pixels.hpp"
#include "io/sharded_array.hpp"
#include "jobs/curate/features.hpp"
#include "jobs/curate/results.hpp"
#include "jobs/curate/sheets.hpp"
#include "jobs/device.hpp"
#include "jobs/kept_features.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"
#include "model/weights.hpp"
#include "search/rows.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;
using curation::Fate;
using nlohmann::json;

/// The images in the order in which they are numbered: first the pool, then the curated sets, then references.
struct Images {
  data::Joined all, without_references;
  std::int64_t pool = 0, curated = 0, references = 0;

  bool in_pool(std::int64_t row) const { return row < pool; }
  bool is_curated(std::int64_t row) const { return row >= pool && row < pool + curated; }
};

struct Config {
  std::vector<std::string> pool, curated, references;
  std::optional<double> duplicate_threshold, reference_threshold;  // none: calibrated
  std::int64_t duplicate_k = 0;
  curation::RetrievalConfig retrieval;
  features::ExtractConfig extract;
};

struct Backbones {
  std::unique_ptr<model::VisionTransformer> copy, similarity;  // may be none
};

std::optional<double> read_threshold(const core::Options& options, std::string_view key) {
  const std::string& text = options.text(key);
  if (text == "auto") return {};
  std::size_t used = 0;
  double value = 0;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  if (used == 0 || used != text.size() || !(value > 0 && value < 1)) {
    throw core::UsageError(fmt::format("{} = {} must be auto, or a similarity between 0 and 1.", key, text));
  }
  return value;
}

void check_thresholds(double duplicate, double reference) {
  if (reference <= duplicate) return;
  throw core::UsageError(fmt::format(
      "curate.reference_threshold = {} must not be above curate.dedup_threshold, which is {}.", reference, duplicate));
}

Config read_config(const core::Options& options, int threads) {
  Config config{.pool = {options.text("curate.pool")},
                .curated = options.get<std::vector<std::string>>("curate.curated"),
                .references = options.get<std::vector<std::string>>("curate.reference"),
                .duplicate_threshold = read_threshold(options, "curate.dedup_threshold"),
                .reference_threshold = read_threshold(options, "curate.reference_threshold"),
                .duplicate_k = options.integer("curate.dedup_k"),
                .retrieval = {.k = options.integer("curate.k"), .target = options.integer("curate.target")},
                .extract = {.pixels = data::read_pixel_config(options),
                            .resize = options.small_integer("curate.resize"),
                            .crop = options.small_integer("curate.crop"),
                            .batch = options.small_integer("curate.batch"),
                            .threads = threads}};
  if (config.pool.front().empty())
    throw core::UsageError("curate.pool is not given: name a folder of images, or packed images.");
  if (config.extract.crop > config.extract.resize) {
    throw core::UsageError(fmt::format("curate.crop = {} must be at most curate.resize = {}.", config.extract.crop,
                                       config.extract.resize));
  }
  if (config.duplicate_threshold && config.reference_threshold)
    check_thresholds(*config.duplicate_threshold, *config.reference_threshold);
  const int channels = config.extract.pixels.channels;
  if (!options.text("curate.copy_weights").empty()) {
    if (!config.duplicate_threshold) {
      throw core::UsageError(
          "With curate.copy_weights, curate.dedup_threshold must be a number: the calibrated one is the training-free "
          "descriptor's.");
    }
  } else if (channels != 1 && channels != 3) {
    throw core::UsageError(fmt::format(
        "data.channels is {}, but without curate.copy_weights copies are found by a descriptor of grey or RGB "
        "images: give a backbone for {} channels.",
        channels, channels));
  }
  return config;
}

Backbones load_backbones(const core::Options& options, const features::ExtractConfig& view) {
  const auto load = [&](const char* key) -> std::unique_ptr<model::VisionTransformer> {
    const std::string& file = options.text(key);
    if (file.empty()) return {};
    auto backbone = model::load_backbone(file);
    model::require_channels(backbone->config(), view.pixels.channels, file);
    if (view.crop % backbone->config().patch_size != 0) {
      throw core::UsageError(fmt::format("curate.crop = {} must be a multiple of {}, the patch size of {}.", view.crop,
                                         backbone->config().patch_size, file));
    }
    return backbone;
  };
  return {load("curate.copy_weights"), load("curate.similarity_weights")};
}

curation::DeduplicationConfig read_thresholds(const Config& config,
                                              const std::optional<curation::Calibration>& calibrated) {
  curation::DeduplicationConfig result{.k = config.duplicate_k};
  result.duplicate_threshold = config.duplicate_threshold ? *config.duplicate_threshold : calibrated->threshold;
  result.reference_threshold = config.reference_threshold.value_or(result.duplicate_threshold);
  check_thresholds(result.duplicate_threshold, result.reference_threshold);
  return result;
}

Images open_sources(Context& context, const Config& config) {
  Images images;
  const auto add = [&](const std::vector<std::string>& sources, const std::string& name, bool reference) {
    std::int64_t total = 0;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const auto dataset = open_images(context, sources[i], data::Labels::ignored);
      const std::string unique_name = sources.size() == 1 ? name : fmt::format("{}{}", name, i + 1);
      images.all.add(unique_name, dataset);
      if (!reference) images.without_references.add(unique_name, dataset);
      total += dataset->size();
    }
    return total;
  };
  images.pool = add(config.pool, "pool", false);
  images.curated = add(config.curated, "curated", false);
  images.references = add(config.references, "reference", true);
  return images;
}

/// Collective. What the job would do, and what it would keep in memory and write at most.
void log_plan(Context& context, const Backbones& backbones, const Images& images) {
  comm::Communicator& world = context.world;
  const data::Dataset& all = images.all;
  std::int64_t bytes = 0;
  comm::coordinate(world, [&] {
    for (std::int64_t row = world.rank(); row < images.pool + images.curated; row += world.size())
      bytes += all.length(row);
  });
  const auto width = [](const model::VisionTransformer& backbone) { return std::int64_t{backbone.config().embed_dim}; };
  std::int64_t values = backbones.copy ? width(*backbones.copy) : curation::kViews * curation::kDescriptorWidth;
  if (backbones.similarity) values += width(*backbones.similarity);
  const auto megabytes = [](std::int64_t n) { return static_cast<double>(n) / 1e6; };
  context.log.info("pool: {} images; curated: {}; references: {}", images.pool, images.curated, images.references);
  context.log.info("features of a rank: {:.1f} MB in memory; on disk, over {} ranks: {:.1f} MB",
                   megabytes(all.size() * values * 4 / world.size()), world.size(), megabytes(all.size() * values * 4));
  context.log.info("the result: {:.1f} MB of images at most", megabytes(world.sum(bytes)));
}

/// An image of this rank that the result holds: a curated one as it is, or a retrieved one.
struct Chosen {
  std::int64_t row, nearest;
  float similarity;
};

/// Collective. Retrieves from what is left of the pool. `tokens` f32 [rows, D] are those of the images from `first` on,
/// in another split of the images than that of `map`: fates are asked for, and what is chosen is brought to the rank
/// that owns it.
std::vector<Chosen> retrieve_images(Context& context, const Images& images, const search::RowMap& map,
                                    const std::vector<Fate>& fates, const at::Tensor& tokens, std::int64_t first,
                                    const curation::RetrievalConfig& config, curation::Retrieval& retrieval) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(tokens.size(0)));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = first + static_cast<std::int64_t>(i);
  const std::vector<Fate> fate_of = map.fetch(fates, rows);
  std::vector<std::int64_t> queries, query_rows, pool, pool_rows;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (fate_of[i] != Fate::kept || !(images.in_pool(rows[i]) || images.is_curated(rows[i]))) continue;
    (images.in_pool(rows[i]) ? pool : queries).push_back(static_cast<std::int64_t>(i));
    (images.in_pool(rows[i]) ? pool_rows : query_rows).push_back(rows[i]);
  }
  const std::int64_t usable = context.world.sum(static_cast<std::int64_t>(queries.size()));
  comm::coordinate(context.world, [&] {
    if (usable == 0) throw core::InputError("None of the images that curate.curated names could be decoded.");
  });
  retrieval =
      curation::retrieve(context.world, tokens.index_select(0, at::tensor(queries, at::kLong)), query_rows,
                         tokens.index_select(0, at::tensor(pool, at::kLong)), config, [&] { context.watchdog.feed(); });
  std::vector<Chosen> chosen;
  for (const curation::Retrieved& image : retrieval.images) {
    chosen.push_back({pool_rows[static_cast<std::size_t>(image.place)], image.nearest, image.similarity});
  }
  for (const std::int64_t row : query_rows) chosen.push_back({row, row, 1.0F});
  chosen = map.deliver(std::move(chosen));
  std::ranges::sort(chosen, {}, &Chosen::row);
  return chosen;
}

/// Without curated images: everything that deduplication leaves.
std::vector<Chosen> choose_all(const Images& images, const search::RowMap& map, const std::vector<Fate>& fates) {
  std::vector<Chosen> chosen;
  for (std::size_t i = 0; i < fates.size(); ++i) {
    const std::int64_t row = map.first() + static_cast<std::int64_t>(i);
    if (fates[i] == Fate::kept && images.in_pool(row)) chosen.push_back({row, row, 1.0F});
  }
  return chosen;
}

/// f32 [rows, D]: class tokens of unit length; zero where the image was rejected.
at::Tensor unit_tokens(const features::Features& features) {
  const at::Tensor tokens = features.cls.select(1, 0);
  return tokens / tokens.norm(2, {1}, true).clamp_min(std::numeric_limits<float>::min());
}

/// Collective. `output`/results/decisions.h5: what became of every image, row by row.
void write_decisions(comm::Communicator& world, const fs::path& index, const Images& images, const search::RowMap& map,
                     const curation::Deduplication& deduplication, const std::vector<Chosen>& chosen) {
  const auto n = map.rows();
  const at::Tensor fate = at::empty({n}, at::kByte), cause = at::empty({n}, at::kLong),
                   nearest = at::full({n}, -1, at::kLong), similarity = at::zeros({n}, at::kFloat);
  std::vector<std::string> keys;
  for (std::int64_t i = 0; i < n; ++i) {
    keys.push_back(images.all.key(map.first() + i));
    fate.mutable_data_ptr<std::uint8_t>()[i] =
        static_cast<std::uint8_t>(deduplication.fates[static_cast<std::size_t>(i)]);
    cause.mutable_data_ptr<std::int64_t>()[i] = deduplication.cause[static_cast<std::size_t>(i)];
  }
  for (const Chosen& image : chosen) {
    nearest.mutable_data_ptr<std::int64_t>()[image.row - map.first()] = image.nearest;
    similarity.mutable_data_ptr<float>()[image.row - map.first()] = image.similarity;
  }
  io::ShardedWriter writer(world, index);
  writer.write_strings("key", keys);
  writer.write("fate", fate);
  writer.write("cause", cause);
  writer.write("nearest", nearest);
  writer.write("similarity", similarity);
  writer.set_attribute("fates",
                       "0 kept, 1 rejected, 2 duplicate (of row `cause`), 3 copy of a reference (row `cause`)");
  writer.publish();
}

/// Collective. `folder`/duplicates.png: images that were removed, behind those that stay; retrieved.png: images that
/// came in, behind the curated ones that they are like.
void write_sheets(Context& context, const fs::path& folder, const Images& images, const search::RowMap& map,
                  const curation::Deduplication& deduplication, const std::vector<Chosen>& chosen,
                  const std::array<int, 2>& range16) {
  std::vector<ShownPair> duplicates, retrieved;
  for (std::size_t i = 0; i < deduplication.fates.size(); ++i) {
    if (deduplication.fates[i] == Fate::duplicate)
      duplicates.push_back({deduplication.cause[i], map.first() + static_cast<std::int64_t>(i)});
  }
  for (const Chosen& image : chosen)
    if (image.nearest != image.row) retrieved.push_back({image.nearest, image.row});
  write_sheet(context, images.all, duplicates, range16, folder / kDuplicatesSheet);
  write_sheet(context, images.all, retrieved, range16, folder / kRetrievedSheet);
}

/// Collective. Packs the chosen images with their provenance, or stops on request.
data::PackedResult write_images(Context& context, const fs::path& folder, const Images& images,
                                const std::vector<Chosen>& chosen) {
  std::vector<std::int64_t> rows;
  std::vector<std::string> stages, nearest;
  std::vector<float> similarity;
  for (const Chosen& image : chosen) {
    rows.push_back(image.row);
    stages.emplace_back(image.nearest == image.row ? "as is" : "retrieved");
    nearest.push_back(images.all.key(image.nearest));
    similarity.push_back(image.similarity);
  }
  comm::coordinate(context.world, [&] { core::make_directory(folder); });
  std::optional<core::Progress> bar;
  const data::PackedResult packed =
      data::write_packed(context.world, images.all, rows,
                         {.strings = {{"stage", std::move(stages)}, {"nearest", std::move(nearest)}},
                          .numbers = {{"similarity", at::tensor(similarity, at::kFloat)}}},
                         folder / data::kPackedIndexName, {.threads = context.threads},
                         {.alive = [&] { context.watchdog.feed(); },
                          .progress =
                              [&](std::int64_t done, std::int64_t total) {
                                if (!bar) bar.emplace(context.log, "packing", total, "images a rank", done);
                                bar->update(done);
                              },
                          .stop = [&] { return context.stop.requested(); }});
  bar->finish();
  return packed;
}

/// What results/curate.json holds of the run itself.
json summarise(const Images& images, const std::optional<curation::Calibration>& calibration,
               const curation::DeduplicationConfig& thresholds, const curation::Deduplication& found,
               const curation::Retrieval& retrieval, std::int64_t written) {
  json summary{{"pool", images.pool},
               {"references", images.references},
               {"rejected", found.rejected},
               {"duplicates", found.duplicates},
               {"reference_copies", found.reference_copies},
               {"left", images.pool - found.rejected - found.duplicates - found.reference_copies},
               {"k", retrieval.k},
               {"retrieved", retrieval.total},
               {"curated", images.curated == 0 ? 0 : written - retrieval.total},
               {"images", written},
               {"dedup_threshold", thresholds.duplicate_threshold},
               {"reference_threshold", thresholds.reference_threshold},
               {"duplicate_edges", found.edges},
               {"least_edge_similarity", found.least_similarity},
               {"mean_edge_similarity", found.mean_similarity},
               {"components_by_size", json::array()}};
  for (const auto& [size, count] : found.components) summary["components_by_size"].push_back({size, count});
  if (calibration) {
    summary["calibration"] = {{"copies_missed", calibration->copies_missed},
                              {"strangers_joined", calibration->strangers_joined}};
  }
  return summary;
}

/// Local. A truth file that cannot be read is told before the work, not after it.
void check_truth(const core::Options& options) {
  if (const std::string& truth = options.text("curate.truth"); !truth.empty()) core::read_text(truth);
}

class CurateJob final : public Job {
 public:
  std::string_view name() const override { return "curate"; }
  std::string_view summary() const override { return "choose a training set from a pool of uncurated images"; }
  void declare(core::Options& options) const override {
    declare_run_options(options);
    declare_source_options(options);
    declare_curate_options(options);
  }
  Outcome run(Context& context) const override { return curate(context); }
};

}  // namespace

void declare_curate_options(core::Options& options) {
  using core::OptionKind;
  const features::ExtractConfig extract;
  options.section("Curation");
  options.add("curate.pool", "", "uncurated images: a folder, or packed images", OptionKind::free);
  options.add(
      "curate.curated", std::vector<std::string>{},
      "images that the result is to be like, and which are part of it as they are: folders or packed images; none: "
      "the result is all that deduplication leaves of the pool",
      OptionKind::free);
  options.add("curate.reference", std::vector<std::string>{},
              "images, such as test splits, whose copies must not come in: folders or packed images", OptionKind::free);
  options.add("curate.dedup_k", std::int64_t{64}, "neighbours of an image that are looked at as its possible copies")
      .at_least(1);
  options.add("curate.dedup_threshold", "auto",
              "images of the pool that are more similar than this are copies; auto: calibrated on synthetic copies");
  options.add("curate.reference_threshold", "auto",
              "the same for copies of curated and reference images, at most curate.dedup_threshold; auto: equal to it");
  options.add("curate.k", std::int64_t{4}, "pool images that are retrieved for each curated image").at_least(1);
  options
      .add("curate.target", std::int64_t{0}, "take more than curate.k until this many images are retrieved; 0: do not")
      .at_least(0);
  options.add("curate.copy_weights", "",
              "backbone whose class tokens find copies, with its own curate.dedup_threshold; none: a descriptor that "
              "needs no training",
              OptionKind::free);
  options.add("curate.similarity_weights", "",
              "backbone whose class tokens are retrieved by; none: the descriptor that needs no training",
              OptionKind::free);
  options.add("curate.truth", "", "what the pool's images are, as `allosaur demo` writes it: scores the result",
              OptionKind::free);
  options.add("curate.resize", std::int64_t{extract.resize}, "for these backbones: shorter side of an image, in pixels")
      .at_least(1);
  options.add("curate.crop", std::int64_t{extract.crop}, "for these backbones: side of the centre crop, in pixels")
      .at_least(1);
  options
      .add("curate.batch", std::int64_t{extract.batch}, "for these backbones: images a forward pass of a rank",
           OptionKind::free)
      .at_least(1);
  declare_device_option(options, "curate.device");
}

void check_curate_options(const core::Options& options) {
  read_config(options, 1);
}

Outcome curate(Context& context) {
  comm::Communicator& world = context.world;
  core::Log& log = context.log;
  const auto start = std::chrono::steady_clock::now();
  const auto feed = [&] { context.watchdog.feed(); };
  const auto stopped = [&] { return world.max(context.stop.requested()) != 0; };

  // Before the output directory is opened, so that a mistake does not become its configuration.
  const Config config = comm::coordinate(world, [&] { return read_config(context.options, context.threads); });
  const Backbones backbones = comm::coordinate(world, [&] {
    check_truth(context.options);
    return load_backbones(context.options, config.extract);
  });
  const Images images = open_sources(context, config);
  if (context.dry_run) {
    log_plan(context, backbones, images);
    return Outcome::complete;
  }
  RunDirectory run(context, "curate", context.options.path("output"));
  const fs::path results = run.path() / "results" / "curate.json";
  log.info("pool: {} images; curated: {}; references: {}", images.pool, images.curated, images.references);
  const std::string images_identity = identify(context, images.all);
  const auto fingerprint = [&](const std::unique_ptr<model::VisionTransformer>& backbone) {
    return comm::on_root(world, [&] { return backbone ? model::fingerprint(*backbone) : "-"; });
  };
  const std::string copy_weights = fingerprint(backbones.copy), similarity_weights = fingerprint(backbones.similarity);
  const std::string identity = fmt::format("{} {} {}", images_identity, copy_weights, similarity_weights);
  const std::string earlier = comm::on_root(world, [&] {
    const bool finished = fs::exists(results) && fs::exists(run.path() / kCuratedFolder / data::kPackedIndexName);
    return finished ? core::read_text(results) : std::string();
  });
  if (const json summary = json::parse(earlier, nullptr, false);
      summary.is_object() && summary.value("identity", "") == identity) {
    log.info("{} holds the result of these images already", (run.path() / kCuratedFolder).string());
    print_summary(log, summary);
    return Outcome::complete;
  }

  RejectedList rejected(context, run.path());
  rejected.add_problems(images.all);
  const auto judge = [&](std::int64_t rows) { rejected.judge(rows, context.options.number("run.max_rejected")); };
  ComputeDevice device(context, "curate.device");
  for (const auto& backbone : {backbones.copy.get(), backbones.similarity.get()})
    if (backbone != nullptr) device.move(*backbone);

  CopyFeatures copy;
  if (backbones.copy) {
    auto found = keep_features(context, *backbones.copy, copy_weights,
                               {images.all, images_identity, run.path(), "copy", ""}, config.extract, rejected);
    if (!found) return Outcome::preempted;
    copy = {unit_tokens(*found).unsqueeze(1), at::tensor(found->area, at::kLong), {}};
  } else {
    auto found = training_free_features(context, images.all, images_identity, images.pool,
                                        config.extract.pixels.range16, run.path(), rejected);
    if (!found) return Outcome::preempted;
    copy = std::move(*found);
    log.info(
        "copies are found by a descriptor that needs no training; its threshold on this pool is {:.3f}, which misses "
        "{:.1f} % of synthetic copies; {:.1f} % of the images have a neighbour above it",
        copy.calibration->threshold, 100 * copy.calibration->copies_missed, 100 * copy.calibration->strangers_joined);
  }
  judge(copy.views.size(0));
  if (stopped()) return Outcome::preempted;

  const auto thresholds = comm::coordinate(world, [&] { return read_thresholds(config, copy.calibration); });
  const search::RowMap map(world, copy.views.size(0));
  const auto deduplication = curation::deduplicate(world, copy.views, copy.area, images.pool, thresholds, feed);
  report_duplicates(log, deduplication, images.pool);
  if (stopped()) return Outcome::preempted;

  std::vector<Chosen> chosen;
  curation::Retrieval retrieval;
  if (images.curated == 0) {
    log.info("curate.curated names no images: the result is all that is left of the pool");
    chosen = choose_all(images, map, deduplication.fates);
  } else {
    at::Tensor tokens = copy.views.select(1, 0);
    std::int64_t first = map.first();
    if (backbones.similarity) {
      log.info("similarity is that of the class tokens of {}", context.options.text("curate.similarity_weights"));
      const data::Dataset& searched = images.without_references;
      const std::string searched_identity = images.references > 0 ? identify(context, searched) : images_identity;
      const auto found =
          keep_features(context, *backbones.similarity, similarity_weights,
                        {searched, searched_identity, run.path(), "similarity", ""}, config.extract, rejected);
      if (!found) return Outcome::preempted;
      tokens = unit_tokens(*found);
      first = world.share(searched.size()).first;
      judge(tokens.size(0));
    } else {
      log.info("similarity is that of the copy descriptor, since curate.similarity_weights names no backbone{}",
               backbones.copy ? "" : ": images are retrieved by layout and colour, not by what they show");
    }
    chosen = retrieve_images(context, images, map, deduplication.fates, tokens, first, config.retrieval, retrieval);
  }
  if (stopped()) return Outcome::preempted;
  const fs::path decisions = run.path() / "results" / "decisions.h5";
  write_decisions(world, decisions, images, map, deduplication, chosen);
  write_sheets(context, run.path() / "results", images, map, deduplication, chosen, config.extract.pixels.range16);
  const data::PackedResult packed = write_images(context, run.path() / kCuratedFolder, images, chosen);
  if (!packed.complete) return Outcome::preempted;

  json summary = summarise(images, copy.calibration, thresholds, deduplication, retrieval, packed.images);
  summary["identity"] = identity;
  summary["bytes"] = packed.bytes;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  comm::coordinate(world, [&] {
    if (world.rank() != 0) return;
    if (const std::string& truth = context.options.text("curate.truth"); !truth.empty()) {
      summary["score"] = score_decisions(decisions, images.pool, core::read_text(truth));
    }
    core::write_atomically(results, summary.dump(2) + "\n");
    run.metrics()->write({{"phase", "curate"},
                          {"pool", images.pool},
                          {"duplicates", deduplication.duplicates},
                          {"reference_copies", deduplication.reference_copies},
                          {"retrieved", retrieval.total},
                          {"images", packed.images},
                          {"seconds", elapsed.count()}});
  });
  print_summary(log, summary);
  log.info("{} is ready after {:.0f} s", (run.path() / kCuratedFolder).string(), elapsed.count());
  return Outcome::complete;
}

std::unique_ptr<Job> make_curate_job() {
  return std::make_unique<CurateJob>();
}

}  // namespace allosaur::jobs
