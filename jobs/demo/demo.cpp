#include "jobs/demo/demo.hpp"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/thread_pool.hpp"
#include "data/demo_set.hpp"
#include "jobs/run_directory.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

void make_folders(const std::vector<data::DemoItem>& items, const fs::path& directory) {
  std::set<fs::path> folders;
  for (const data::DemoItem& item : items) {
    folders.insert(fs::path(item.path).parent_path());
    if (!item.map_path.empty()) folders.insert(fs::path(item.map_path).parent_path());
  }
  for (const fs::path& folder : folders) core::make_directory(directory / folder);
}

class DemoJob final : public Job {
 public:
  std::string_view name() const override { return "demo"; }
  std::string_view summary() const override {
    return "a small set of pictures with ground truth, to try every phase on";
  }
  void declare(core::Options& options) const override {
    declare_demo_options(options);
    declare_run_options(options);
  }
  Outcome run(Context& context) const override { return demo(context); }
};

}  // namespace

void declare_demo_options(core::Options& options) {
  options.section("Demo data");
  options.add("demo.seed", std::int64_t{0}, "another seed, other pictures");
  options.add("demo.scale", 1.0, "multiplies the number of pictures; 1: about 3,700 files").above(0).at_most(1000);
}

Outcome demo(Context& context) {
  comm::Communicator& world = context.world;
  const auto seed = static_cast<std::uint64_t>(context.options.integer("demo.seed"));
  const double scale = context.options.number("demo.scale");
  if (context.dry_run) {
    context.log.info("{} pictures would be drawn into {}.", data::plan_demo_set(seed, scale).size(),
                     context.options.text("output"));
    return Outcome::complete;
  }
  const RunDirectory run(context, "demo", context.options.path("output"));
  const fs::path truth = run.path() / "truth.json";
  if (comm::on_root(world, [&] { return fs::exists(truth); })) {
    context.log.info("{} already holds the demo data; nothing to do.", run.path().string());
    return Outcome::complete;
  }

  const std::vector<data::DemoItem> items = data::plan_demo_set(seed, scale);
  const auto total = static_cast<std::int64_t>(items.size());
  comm::coordinate(world, [&] {
    if (world.rank() == 0) make_folders(items, run.path());
  });
  core::Progress progress(context.log, "demo", total, "pictures");
  comm::coordinate(world, [&] {
    const std::int64_t block = std::int64_t{128} * world.size();  // between signs of life
    for (std::int64_t first = world.rank(); first < total; first += block) {
      const std::int64_t last = std::min(first + block, total);  // every rank takes each world.size()-th picture
      core::parallel_for(context.threads, (last - first + world.size() - 1) / world.size(), [&](std::int64_t i) {
        data::write_demo_item(items[static_cast<std::size_t>(first + i * world.size())], seed, run.path());
      });
      context.watchdog.feed();
      progress.update(last);
    }
  });
  comm::coordinate(world, [&] {
    if (world.rank() == 0) core::write_atomically(truth, data::demo_truth(items));
  });
  progress.finish();
  context.log.info("{} holds {} pictures; {} says what those of the pool are.", run.path().string(), total,
                   truth.string());
  return Outcome::complete;
}

std::unique_ptr<Job> make_demo_job() {
  return std::make_unique<DemoJob>();
}

}  // namespace allosaur::jobs
