#include "jobs/pack/pack.hpp"

#include <numeric>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "data/packed.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

/// The rows of a contiguous, nearly equal share of [0, total).
std::vector<std::int64_t> share_of(const comm::Communicator& world, std::int64_t total) {
  const std::int64_t first = total * world.rank() / world.size(), last = total * (world.rank() + 1) / world.size();
  std::vector<std::int64_t> rows(static_cast<std::size_t>(last - first));
  std::iota(rows.begin(), rows.end(), first);
  return rows;
}

class PackJob final : public Job {
 public:
  std::string_view name() const override { return "pack"; }
  std::string_view summary() const override { return "images of a folder as few large files"; }

  void declare(core::Options& options) const override {
    options.section("Pack");
    options.add_required("pack.source", "images: a folder, tar shards, a list, or packed images");
    options.add("pack.labelled", false, "keep the class of each image: its top folder, or its stored label");
    declare_run_options(options);
    declare_source_options(options);
  }

  Outcome run(Context& context) const override {
    comm::Communicator& world = context.world;
    const fs::path index = context.options.path("output") / data::kPackedIndexName;
    const data::Labels labels = context.options.flag("pack.labelled") ? data::Labels::required : data::Labels::ignored;
    const bool packed = !comm::on_root(world, [&] { return fs::exists(index) ? "yes" : ""; }).empty();
    // The source before the output directory, so that a misspelt path does not become its configuration.
    const auto source = packed ? nullptr : open_images(context, context.options.path("pack.source"), labels);
    if (context.dry_run && source) {
      const std::vector<std::int64_t> rows = share_of(world, source->size());
      std::int64_t bytes = 0;
      comm::coordinate(world, [&] {
        for (const std::int64_t row : rows) bytes += source->length(row);
      });
      context.log.info("{} images ({:.1f} MB) would be packed into {} files beside {}.", source->size(),
                       static_cast<double>(world.sum(bytes)) / 1e6, world.size(), index.string());
      return Outcome::complete;
    }
    const RunDirectory directory(context, name(), context.options.path("output"));
    if (packed) {
      context.log.info("{} already holds {} packed images; nothing to do.", index.string(),
                       open_images(context, index, labels)->size());
      return Outcome::complete;
    }

    const std::vector<std::int64_t> rows = share_of(world, source->size());
    core::Progress progress(context.log, "pack", static_cast<std::int64_t>(rows.size()), "images");
    RejectedList rejected(context, directory.path());
    rejected.add_problems(*source);
    const data::PackedResult result = data::write_packed(
        world, *source, rows, {}, index, context.threads,
        [&](std::int64_t done) {
          context.watchdog.feed();
          progress.update(done);
        },
        [&](const std::vector<data::Rejected>& broken) {
          progress.finish();
          for (const data::Rejected& image : broken) rejected.add(image.key, image.reason);
          rejected.judge(std::ssize(rows), context.options.number("run.max_rejected"));
          const std::int64_t good = world.sum(std::ssize(rows) - std::ssize(broken));
          comm::coordinate(world, [&] {
            if (good == 0)
              throw core::InputError(fmt::format("None of the {} images could be decoded.", source->size()));
          });
        });
    const std::int64_t images = world.sum(result.images), bytes = world.sum(result.bytes);
    context.log.info("Packed {} images ({:.1f} MB) into {}.", images, static_cast<double>(bytes) / 1e6, index.string());
    return Outcome::complete;
  }
};

}  // namespace

std::unique_ptr<Job> make_pack_job() {
  return std::make_unique<PackJob>();
}

}  // namespace allosaur::jobs
