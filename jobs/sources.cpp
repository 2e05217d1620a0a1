#include "jobs/sources.hpp"

#include <cstdlib>
#include <span>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/files.hpp"
#include "data/pixels.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

/// As the XDG base directories have it; nowhere for a user without a home.
fs::path default_cache() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/') {
    return fs::path(cache) / "allosaur";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache/allosaur";
  return {};
}

}  // namespace

void declare_source_options(core::Options& options) {
  using core::OptionKind;
  options.section("Sources of images");
  options.add("data.index_cache", "auto",
              "folder, shared by all nodes, for the indexes of tar shards and of large sources; auto: allosaur in the "
              "user's cache folder; none: scan every time",
              OptionKind::free);
  options.add("data.stage", "", "folder on a disk of each node to which tar shards are copied before they are read",
              OptionKind::free);
  data::declare_pixel_options(options);
}

std::shared_ptr<const data::Dataset> open_images(Context& context, const fs::path& source, data::Labels labels) {
  const std::string& cache = context.options.text("data.index_cache");
  data::Places places;
  if (!context.dry_run) {
    places.cache = cache == "auto" ? default_cache() : cache == "none" ? fs::path() : fs::path(cache);
    places.stage = context.options.path("data.stage");
  }
  places.progress = [&](std::int64_t) { context.watchdog.feed(); };
  places.warn = [&](const std::string& message) { context.log.warning("{}", message); };
  const comm::Watchdog::WaitingAllowed others_may_scan(context.watchdog);
  return data::open_dataset(context.world, source, labels, places);
}

std::string identify(Context& context, const data::Dataset& images) {
  constexpr std::int64_t kBlock = 4096;  // images between signs of life
  const comm::Range rows = context.world.share(images.size());
  std::uint64_t sum = 0;  // of hashes, which does not depend on how rows are split over ranks
  comm::coordinate(context.world, [&] {
    for (std::int64_t row = rows.first; row < rows.last; ++row) {
      const std::string image = fmt::format("{}\t{}\t{}", images.key(row), images.label(row), images.length(row));
      sum += core::hash_text(image, static_cast<std::uint64_t>(row));
      if (row % kBlock == 0) context.watchdog.feed();
    }
  });
  context.world.all_reduce(std::span(&sum, 1), comm::ReduceOp::sum);
  return core::hash_hex(sum);
}

}  // namespace allosaur::jobs
