#include "jobs/curate/results.hpp"

#include <algorithm>
#include <string_view>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "curation/score.hpp"
#include "io/sharded_array.hpp"

namespace allosaur::jobs {

using nlohmann::json;

json score_decisions(const std::filesystem::path& index, std::int64_t pool, const std::string& truth) {
  constexpr std::string_view kPoolPrefix = "pool/";
  const io::ShardedReader reader(index);
  curation::Decisions decisions;
  decisions.keys = reader.read_strings("key");
  decisions.keys.resize(static_cast<std::size_t>(pool));
  for (std::string& key : decisions.keys) key.erase(0, kPoolPrefix.size());
  const at::Tensor fate = reader.read("fate", 0, pool), cause = reader.read("cause", 0, pool),
                   nearest = reader.read("nearest", 0, pool);
  for (std::int64_t i = 0; i < pool; ++i) {
    decisions.fates.push_back(static_cast<curation::Fate>(fate.const_data_ptr<std::uint8_t>()[i]));
    decisions.cause.push_back(cause.const_data_ptr<std::int64_t>()[i]);
    decisions.retrieved.push_back(nearest.const_data_ptr<std::int64_t>()[i] >= 0);
  }
  const curation::Score score = curation::score(decisions, truth);
  return {{"copies_planted", score.planted},
          {"copies_recall", score.recall},
          {"copies_recall_by_kind", score.recall_by_kind},
          {"duplicates_removed", score.removed},
          {"duplicates_precision", score.precision},
          {"broken_planted", score.broken},
          {"broken_found", score.broken_found},
          {"retrieved_on_topic", score.on_topic},
          {"pool_on_topic", score.pool_on_topic}};
}

void report_duplicates(core::Log& log, const curation::Deduplication& found, std::int64_t pool) {
  if (found.edges == 0) {
    log.info("no two images of the pool are copies of each other");
    return;
  }
  const std::int64_t largest = found.components.rbegin()->first;
  log.info(
      "{} pairs of copies in the pool, with similarity {:.3f} at least and {:.3f} on average; the largest group of "
      "copies has {} images",
      found.edges, found.least_similarity, found.mean_similarity, largest);
  if (largest > std::max<std::int64_t>(100, pool / 20)) {
    log.warning(
        "One group of copies holds {} of {} images, of which only one stays. If these are not copies, "
        "curate.dedup_threshold is too low.",
        largest, pool);
  }
}

void print_summary(core::Log& log, const json& summary) {
  const auto row = [&](const char* name, const char* key) {
    log.info("{:<36}{:>12}", name, summary.at(key).get<std::int64_t>());
  };
  row("images in the pool", "pool");
  row("  not decodable", "rejected");
  row("  duplicates removed", "duplicates");
  row("  copies of curated or reference images", "reference_copies");
  row("  left", "left");
  row("  retrieved", "retrieved");
  row("curated images, as they are", "curated");
  row("images in the result", "images");
  if (!summary.contains("score")) return;
  const auto percent = [&](const char* name, const char* key) {
    log.info("{:<36}{:>12.1f} %", name, 100 * summary.at("score").at(key).get<double>());
  };
  percent("planted copies found", "copies_recall");
  percent("removed duplicates that are copies", "duplicates_precision");
  percent("broken files found", "broken_found");
  percent("retrieved images that show a class", "retrieved_on_topic");
  percent("  the same in the whole pool", "pool_on_topic");
}

}  // namespace allosaur::jobs
