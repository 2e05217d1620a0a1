#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "curation/deduplicate.hpp"
#include "curation/describe.hpp"
#include "curation/descriptor.hpp"
#include "curation/thumbnail.hpp"
#include "data/joined.hpp"
#include "pictures.hpp"
#include "search/slices.hpp"

namespace allosaur {
namespace {

using namespace curation;
using testing::picture;
using testing::world;

at::Tensor views_of(const io::Image& image) {
  const at::Tensor views = at::empty({kViews, kThumbnailWidth});
  describe_views(image, {views.mutable_data_ptr<float>(), static_cast<std::size_t>(views.numel())});
  return views;
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).norm().item<double>() / b.norm().item<double>();
}

TEST_CASE("a view depends neither on resolution nor shape, and windows are those of the cropped image") {
  const at::Tensor small = views_of(picture(1, 64, 64)), wide = views_of(picture(1, 300, 150));
  CHECK(distance(small, wide) < 0.05);
  CHECK(distance(small[0], views_of(picture(2, 64, 64))[0]) > 0.2);
  const io::Image whole = picture(1, 200, 200);
  const io::Image corner = io::resize_bicubic(whole, {30, 0, 170, 170}, 170, 170);  // 85 % of the sides, top right
  CHECK(distance(views_of(whole)[3], views_of(corner)[0]) < 0.05);
  CHECK(views_of(io::Image{1, 1, 3, {10, 20, 30}}).isfinite().all().item<bool>());
}

TEST_CASE("separating_threshold") {
  const std::vector<float> copies{0.8F, 0.9F, 0.95F, 0.99F}, strangers{0.1F, 0.3F, 0.4F};
  CHECK(separating_threshold(copies, strangers) == doctest::Approx(0.6));
  // Real copies among the nearest images change nothing, however many.
  std::vector<float> nearest(strangers);
  for (int i = 0; i < 3; ++i) nearest.insert(nearest.end(), copies.begin(), copies.end());
  CHECK(separating_threshold(copies, nearest) == doctest::Approx(0.6));
  // Overlapping: one stranger too many beats one copy too few only when the shares say so.
  CHECK(separating_threshold(std::vector<float>{0.5F, 0.9F, 0.9F, 0.9F}, std::vector<float>{0.2F, 0.7F}) ==
        doctest::Approx(0.8));
  CHECK(separating_threshold(std::vector<float>{1.0F}, std::vector<float>{1.0F, 1.0F}) == doctest::Approx(0.5));
}

TEST_CASE("calibrate misses a few copies rather than join strangers") {
  std::vector<float> copies(100);
  for (std::size_t i = 0; i < copies.size(); ++i) copies[i] = static_cast<float>(i) / 100;
  Calibration found = calibrate(copies, std::vector<float>{-0.5F});
  CHECK(found.threshold == doctest::Approx(0.05));
  CHECK(found.copies_missed == doctest::Approx(0.05));
  CHECK(found.strangers_joined == 0);
  found = calibrate(copies, std::vector<float>{0.5F, 0.6F, 0.605F});
  CHECK(found.threshold > 0.605);
  CHECK(calibrate(copies, {}).threshold == doctest::Approx(0.05));
}

/// Pictures as JPEG files of different sizes, number 7 broken.
testing::MemoryDataset picture_files(std::int64_t count) {
  std::vector<std::vector<std::byte>> files;
  for (std::int64_t i = 0; i < count; ++i) {
    files.push_back(
        i == 7 ? std::vector<std::byte>{}
               : io::encode_jpeg(picture(static_cast<std::uint64_t>(i), 40 + 3 * static_cast<int>(i % 5), 48), 90));
  }
  return testing::MemoryDataset(std::move(files));
}

TEST_CASE("the descriptor tells copies of images from other images, with a threshold it finds itself") {
  const std::int64_t total = 120;
  const testing::MemoryDataset files = picture_files(total);
  const auto [first, rows] = testing::uneven_slice(total);
  std::vector<std::int64_t> mine(static_cast<std::size_t>(rows));
  std::iota(mine.begin(), mine.end(), first);
  std::int64_t reported = 0;
  const CopySample sample = sample_copies(files, mine, 2, [&](std::int64_t done) { reported = done; });
  CHECK(reported == rows);
  CHECK(static_cast<std::int64_t>(sample.rows.size()) == rows - (first <= 7 && 7 < first + rows ? 1 : 0));
  const CopyDescriptor descriptor = fit_copy_descriptor(world(), sample.views, sample.fit_copies);

  std::vector<std::string> rejected;
  const CopyViews images = describe_images(
      descriptor, files, first, rows, 2, [&](const std::string& key, const std::string&) { rejected.push_back(key); });
  CHECK(rejected.size() == (first <= 7 && 7 < first + rows ? 1U : 0U));
  const bool right_lengths =
      images.views.norm(2, {2}).amax(1).sub(images.pixels.gt(0).to(at::kFloat)).abs().lt(1e-5).all().item<bool>();
  CHECK(right_lengths);

  std::vector<std::int64_t> places;
  for (const std::int64_t row : sample.rows) places.push_back(row - first);
  const at::Tensor nearest = nearest_in_pool(world(), images.views, total, places);
  const at::Tensor copies = copy_similarities(descriptor, sample);
  const auto span_of = [](const at::Tensor& values) {
    return std::span(values.const_data_ptr<float>(), static_cast<std::size_t>(values.numel()));
  };
  // Small samples are judged together: everything to everyone.
  const auto gather = [&](const at::Tensor& values) {
    const std::vector<std::int64_t> counts = world().gather_all(values.numel());
    std::vector<float> all(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})));
    world().all_gather_counts(span_of(values.contiguous()), std::span(all), counts);
    return all;
  };
  const std::vector<float> all_copies = gather(copies), all_nearest = gather(nearest);
  const Calibration calibration = calibrate(all_copies, all_nearest);
  CHECK(calibration.copies_missed <= 0.06);
  CHECK(calibration.strangers_joined < 0.03);
}

TEST_CASE("the descriptor fitted by several ranks is that fitted by one") {
  const std::int64_t total = 30;
  const testing::MemoryDataset files = picture_files(total);
  std::vector<std::int64_t> all(static_cast<std::size_t>(total));
  std::iota(all.begin(), all.end(), 0);
  const auto [first, rows] = testing::uneven_slice(total);
  const std::span mine = std::span(all).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(rows));
  const CopySample whole = sample_copies(files, all, 1, [](std::int64_t) {});
  const CopySample part = sample_copies(files, mine, 1, [](std::int64_t) {});
  const CopyDescriptor together = fit_copy_descriptor(world(), part.views, part.fit_copies);
  const auto alone = world().split(world().rank(), 0);
  const CopyDescriptor expected = fit_copy_descriptor(*alone, whole.views, whole.fit_copies);
  const auto similarities = [&](const CopyDescriptor& descriptor) {
    const at::Tensor rows_of = descriptor(whole.views.select(1, 0));
    return at::mm(rows_of, rows_of.t());
  };
  CHECK((similarities(together) - similarities(expected)).abs().max().item<double>() < 1e-3);
}

TEST_CASE("sources stand one after the other, under their names") {
  data::Joined sources;
  sources.add("pool", std::make_shared<testing::MemoryDataset>(picture_files(3)));
  sources.add("empty", std::make_shared<testing::MemoryDataset>(picture_files(0)));
  sources.add("curated", std::make_shared<testing::MemoryDataset>(picture_files(2)));
  CHECK(sources.size() == 5);
  CHECK(sources.key(2) == "pool/2.jpg");
  CHECK(sources.get(3).key == "curated/0.jpg");
  CHECK(sources.length(4) == static_cast<std::int64_t>(sources.get(1).bytes.size()));
}

}  // namespace
}  // namespace allosaur
