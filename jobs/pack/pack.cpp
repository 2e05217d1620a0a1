#include "jobs/pack/pack.hpp"

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "data/packed.hpp"
#include "data/packed_writer.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

/// The rows of this rank's share of [0, total).
std::vector<std::int64_t> share_of(const comm::Communicator& world, std::int64_t total) {
  const comm::Range mine = world.share(total);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(mine.size()));
  std::iota(rows.begin(), rows.end(), mine.first);
  return rows;
}

double megabytes(std::int64_t bytes) {
  return static_cast<double>(bytes) / 1e6;
}

Outcome pack(Context& context, const data::Dataset& source, const fs::path& index) {
  comm::Communicator& world = context.world;
  const std::vector<std::int64_t> rows = share_of(world, source.size());
  std::optional<core::Progress> progress;
  RejectedList rejected(context, index.parent_path());
  rejected.add_problems(source);
  const data::PackHooks hooks{
      .alive = [&] { context.watchdog.feed(); },
      .progress =
          [&](std::int64_t done, std::int64_t total) {
            if (!progress) progress.emplace(context.log, "pack", total, "images a rank", done);
            progress->update(done);
          },
      .stop = [&] { return context.stop.requested(); },
      .accept =
          [&](const std::vector<data::Rejected>& broken) {
            progress->finish();
            for (const data::Rejected& image : broken) rejected.add(image.key, image.reason);
            rejected.judge(std::ssize(rows), context.options.number("run.max_rejected"));
            const std::int64_t all_broken = world.sum(std::ssize(broken));
            comm::coordinate(world, [&] {
              if (all_broken == source.size())
                throw core::InputError(fmt::format("None of the {} images could be decoded.", source.size()));
            });
          }};
  const data::PackedResult result =
      data::write_packed(world, source, rows, {}, index, {.threads = context.threads}, hooks);
  if (!result.complete) {
    context.log.info("Stopped on request with {} of {} parts finished; the same command continues from there.",
                     result.finished, result.parts);
    return Outcome::preempted;
  }
  if (result.taken_over > 0) {
    context.log.info("{} of {} parts had been finished before and were taken over.", result.taken_over, result.parts);
  }
  context.log.info("Packed {} images ({:.1f} MB) into {}.", result.images, megabytes(result.bytes), index.string());
  return Outcome::complete;
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
    const bool packed = comm::on_root(world, [&] { return fs::exists(index); });
    // The source before the output directory, so that a misspelt path does not become its configuration.
    const auto source = packed ? nullptr : open_images(context, context.options.path("pack.source"), labels);
    std::optional<RunDirectory> directory;
    if (!context.dry_run) directory.emplace(context, name(), context.options.path("output"));
    if (packed) {
      context.log.info("{} already holds {} packed images; nothing to do.", index.string(),
                       open_images(context, index, labels)->size());
      return Outcome::complete;
    }
    if (!context.dry_run) return pack(context, *source, index);
    const data::PackPlan plan =
        data::plan_packed(world, *source, share_of(world, source->size()), {.threads = context.threads},
                          {.alive = [&] { context.watchdog.feed(); }});
    context.log.info("{} images ({:.1f} MB) would be packed into {} files beside {}.", plan.images,
                     megabytes(plan.bytes), plan.parts, index.string());
    return Outcome::complete;
  }
};

}  // namespace

std::unique_ptr<Job> make_pack_job() {
  return std::make_unique<PackJob>();
}

}  // namespace allosaur::jobs
