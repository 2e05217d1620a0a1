#include "jobs/curate/features.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "curation/deduplicate.hpp"
#include "curation/describe.hpp"
#include "io/sharded_array.hpp"
#include "jobs/kept_features.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSampleImages = 2048;                  // of the pool, to fit and calibrate the descriptor with
constexpr std::int64_t kBlock = 256;                          // images of a rank between two looks at the stop signal
constexpr const char* kDescriptorName = "thumbnail views 2";  // changes with what is computed

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

/// A fitted descriptor and what it is calibrated with.
struct Fitted {
  curation::CopyDescriptor descriptor;
  std::vector<std::int64_t> rows;  // of this rank's share: which images were sampled
  std::vector<float> copies;       // of all ranks: similarities of synthetic copies to their originals
};

std::vector<float> floats(const at::Tensor& values) {
  const auto* begin = values.const_data_ptr<float>();
  return {begin, begin + values.numel()};
}

/// Collective. The descriptor that was kept at `index` for the same images, or nothing.
std::optional<Fitted> find_descriptor(comm::Communicator& world, const fs::path& index, const std::string& identity,
                                      const comm::Range& share) {
  const std::string found = comm::on_root(
      world, [&] { return fs::exists(index) ? io::ShardedReader(index).text_attribute("identity") : std::string(); });
  if (found != identity) return {};
  return comm::coordinate(world, [&] {
    const io::ShardedReader reader(index);
    Fitted fitted{{reader.read("mean").flatten(), reader.read("projection")}, {}, floats(reader.read("copies"))};
    const at::Tensor rows = reader.read("sample");
    for (std::int64_t i = 0; i < rows.numel(); ++i) {
      const std::int64_t row = rows.const_data_ptr<std::int64_t>()[i];
      if (row >= share.first && row < share.last) fitted.rows.push_back(row);
    }
    return fitted;
  });
}

/// Collective. Fits the descriptor to a sample of the pool and keeps it at `index`: a run that goes on, on other ranks
/// maybe, describes the rest of the images with the same.
Fitted fit_descriptor(Context& context, const data::Dataset& images, const fs::path& index, const std::string& identity,
                      std::int64_t pool, const std::array<int, 2>& range16) {
  comm::Communicator& world = context.world;
  const std::vector<std::int64_t> wanted = sample_rows(world.share(images.size()), pool);
  core::Progress bar(context.log, "copies of sample images", static_cast<std::int64_t>(wanted.size()), "images a rank");
  curation::CopySample sample = comm::coordinate(world, [&] {
    return curation::sample_copies(images, wanted, range16, context.threads, [&](std::int64_t done) {
      context.watchdog.feed();
      bar.update(done);
    });
  });
  bar.finish();
  const std::int64_t usable = world.sum(static_cast<std::int64_t>(sample.rows.size()));
  comm::coordinate(world, [&] {
    if (usable == 0) throw core::InputError("None of the images that were sampled from curate.pool could be decoded.");
  });
  Fitted fitted{curation::fit_copy_descriptor(world, sample.views, sample.fit_copies), sample.rows, {}};
  fitted.copies = gather_finite(world, curation::copy_similarities(fitted.descriptor, sample));

  comm::coordinate(world, [&] { core::make_directory(index.parent_path()); });
  const std::int64_t once = world.rank() == 0 ? 1 : 0;  // what all ranks have is written by the first
  const at::Tensor projection = fitted.descriptor.projection(), copies = at::tensor(fitted.copies, at::kFloat);
  io::ShardedWriter writer(world, index);
  writer.write("mean", fitted.descriptor.mean().unsqueeze(0).narrow(0, 0, once).contiguous());
  writer.write("projection", projection.narrow(0, 0, once * projection.size(0)).contiguous());
  writer.write("copies", copies.narrow(0, 0, once * copies.numel()).contiguous());
  writer.write("sample", at::tensor(fitted.rows, at::kLong));
  writer.set_attribute("identity", identity);
  writer.publish();
  return fitted;
}

}  // namespace

std::optional<CopyFeatures> training_free_features(Context& context, const data::Dataset& images,
                                                   const std::string& identity, std::int64_t pool,
                                                   const std::array<int, 2>& range16, const fs::path& directory,
                                                   RejectedList& rejected) {
  comm::Communicator& world = context.world;
  const comm::Range share = world.share(images.size());
  const fs::path folder = directory / "features";
  const std::string own_identity = fmt::format("{} {} {}", kDescriptorName, fmt::join(range16, ","), identity);
  auto fitted = find_descriptor(world, folder / "descriptor.h5", own_identity, share);
  if (!fitted) fitted = fit_descriptor(context, images, folder / "descriptor.h5", own_identity, pool, range16);

  const auto describe = [&](comm::Range rows,
                            const std::function<void(std::int64_t)>& progress) -> std::optional<Arrays> {
    std::vector<at::Tensor> views, area;
    std::int64_t done = 0;
    do {
      if (context.stop.requested()) return {};
      const std::int64_t count = std::min(kBlock, rows.size());
      curation::CopyViews found = curation::describe_images(
          fitted->descriptor, images, rows.first, count, range16, context.threads,
          [&](const std::string& key, const std::string& reason) { rejected.add(key, reason); });
      views.push_back(std::move(found.views));
      area.push_back(std::move(found.pixels));
      rows.first += count;
      progress(done += count);
    } while (rows.size() > 0);
    return Arrays{{"views", at::cat(views)}, {"area", at::cat(area)}};
  };
  const auto kept = keep_rows(context, folder / "copy", own_identity, images.size(), describe);
  if (!kept) return {};
  CopyFeatures result{kept->at("views"), kept->at("area"), {}};
  for (std::int64_t row = 0; row < share.size(); ++row)
    if (result.area.const_data_ptr<std::int64_t>()[row] == 0) rejected.count(images.key(share.first + row));

  for (std::int64_t& row : fitted->rows) row -= share.first;
  const at::Tensor nearest =
      curation::nearest_in_pool(world, result.views, pool, fitted->rows, [&] { context.watchdog.feed(); });
  result.calibration = curation::calibrate(fitted->copies, gather_finite(world, nearest));
  return result;
}

}  // namespace allosaur::jobs
