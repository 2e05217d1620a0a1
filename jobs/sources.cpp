#include "jobs/sources.hpp"

#include <cstdlib>

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
  places.cache = cache == "auto" ? default_cache() : cache == "none" ? fs::path() : fs::path(cache);
  places.stage = context.options.path("data.stage");
  places.progress = [&](std::int64_t) { context.watchdog.feed(); };
  places.warn = [&](const std::string& message) { context.log.warning("{}", message); };
  const comm::Watchdog::WaitingAllowed others_may_scan(context.watchdog);
  return data::open_dataset(context.world, source, labels, places);
}

}  // namespace allosaur::jobs
