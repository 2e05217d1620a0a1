#include "jobs/inspect/inspect.hpp"

#include <algorithm>
#include <filesystem>
#include <numeric>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "data/inspect.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::size_t kShown = 10;  // lines of a list; the report has all

json to_json(const data::Spread& spread) {
  return {{"least", spread.least}, {"median", spread.median}, {"largest", spread.largest}};
}

json to_json(const data::Inspection& found, const std::vector<std::string>& class_names) {
  json report{{"images", found.images},
              {"bytes", found.bytes},
              {"width", to_json(found.width)},
              {"height", to_json(found.height)},
              {"encoded_bytes", to_json(found.length)},
              {"kinds", found.kinds},
              {"classes", json::array()},
              {"unlabelled", found.unlabelled},
              {"duplicates", json::array()},
              {"broken", json::array()}};
  for (std::size_t i = 0; i < class_names.size(); ++i) {
    report["classes"].push_back({{"name", class_names[i]}, {"images", found.class_sizes[i]}});
  }
  for (const auto& [file, earlier] : found.duplicates) {
    report["duplicates"].push_back({{"key", file}, {"same_as", earlier}});
  }
  for (const data::Rejected& image : found.broken) {
    report["broken"].push_back({{"key", image.key}, {"reason", image.reason}});
  }
  return report;
}

/// The first lines of a list, and how many there are.
template <class List, class Line>
void show(core::Log& log, const char* title, const List& list, Line&& line) {
  log.info("{:<20}{:>12}", title, list.size());
  for (std::size_t i = 0; i < std::min(kShown, list.size()); ++i) log.info("  {}", line(list[i]));
  if (list.size() > kShown) log.info("  ... and {} more", list.size() - kShown);
}

void show(core::Log& log, const data::Inspection& found, const std::vector<std::string>& class_names) {
  const auto spread = [&](const char* title, const data::Spread& values) {
    log.info("{:<20}{:>12} to {}, median {}", title, values.least, values.largest, values.median);
  };
  log.info("{:<20}{:>12}", "images", found.images);
  log.info("{:<20}{:>12.1f} MB", "encoded", static_cast<double>(found.bytes) / 1e6);
  spread("width", found.width);
  spread("height", found.height);
  spread("bytes an image", found.length);
  for (const auto& [kind, images] : found.kinds) log.info("  {:<28}{:>10}", kind, images);
  if (!class_names.empty()) {
    std::vector<std::size_t> order(class_names.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return found.class_sizes[a] > found.class_sizes[b]; });
    show(log, "classes", order,
         [&](std::size_t i) { return fmt::format("{:<28}{:>10}", class_names[i], found.class_sizes[i]); });
    if (found.unlabelled > 0) log.info("{:<20}{:>12}", "without a class", found.unlabelled);
  }
  show(log, "duplicates", found.duplicates,
       [](const auto& pair) { return fmt::format("{} has the bytes of {}", pair.first, pair.second); });
  show(log, "broken", found.broken,
       [](const data::Rejected& image) { return fmt::format("{}: {}", image.key, image.reason); });
}

class InspectJob final : public Job {
 public:
  std::string_view name() const override { return "inspect"; }
  std::string_view summary() const override { return "what a source of images holds: sizes, formats, classes, damage"; }
  std::string_view argument() const override { return "inspect.source"; }

  void declare(core::Options& options) const override {
    options.section("Inspect");
    options.add_required("inspect.source", "images: a folder, tar shards, a list, or packed images");
    options.add("output", "", "file to write the whole report to, as JSON");
    declare_source_options(options);
    declare_process_options(options);
  }

  Outcome run(Context& context) const override {
    comm::Communicator& world = context.world;
    const data::PixelConfig pixels = comm::coordinate(world, [&] { return data::read_pixel_config(context.options); });
    const auto source = open_images(context, context.options.path("inspect.source"), data::Labels::where_known);
    if (context.dry_run) {
      context.log.info("{} images would be read and decoded by {} ranks.", source->size(), world.size());
      return Outcome::complete;
    }
    core::Progress progress(context.log, "inspect", source->size() / world.size(), "images a rank");
    const data::Inspection found = data::inspect(world, *source, pixels, context.threads, [&](std::int64_t done) {
      context.watchdog.feed();
      progress.update(done);
    });
    progress.finish();
    comm::coordinate(world, [&] {
      if (world.rank() != 0) return;
      show(context.log, found, source->class_names());
      if (const fs::path output = context.options.path("output"); !output.empty()) {
        const json report = to_json(found, source->class_names());
        core::write_atomically(output, report.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
      }
    });
    return Outcome::complete;
  }
};

}  // namespace

std::unique_ptr<Job> make_inspect_job() {
  return std::make_unique<InspectJob>();
}

}  // namespace allosaur::jobs
