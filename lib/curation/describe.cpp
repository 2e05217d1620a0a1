#include "curation/describe.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.hpp"
#include "core/thread_pool.hpp"
#include "curation/thumbnail.hpp"
#include "io/image.hpp"

namespace allosaur::curation {
namespace {

constexpr std::int64_t kBlock = 256;  // images between two reports of progress
constexpr std::uint64_t kSeed = 0;

std::span<float> row_of(const at::Tensor& table, std::int64_t row) {
  const std::int64_t width = table.numel() / std::max<std::int64_t>(table.size(0), 1);
  return {table.mutable_data_ptr<float>() + row * width, static_cast<std::size_t>(width)};
}

/// Describes synthetic copies number `from` to `from + kSyntheticKinds - 1` of an image.
void describe_copies(const io::Image& image, std::int64_t row, int from, std::span<float> out) {
  for (int kind = 0; kind < kSyntheticKinds; ++kind) {
    core::Random random(kSeed, core::Purpose::subset, static_cast<std::uint64_t>(row),
                        static_cast<std::uint32_t>(from + kind));
    const auto place = out.subspan(static_cast<std::size_t>(kind * kThumbnailWidth), kThumbnailWidth);
    describe_views(synthetic_copy(image, kind, random), place);
  }
}

}  // namespace

CopySample sample_copies(const data::Dataset& dataset, std::span<const std::int64_t> rows,
                         const std::array<int, 2>& range16, int threads,
                         const std::function<void(std::int64_t)>& progress) {
  const auto n = static_cast<std::int64_t>(rows.size());
  CopySample sample{{rows.begin(), rows.end()},
                    at::zeros({n, kViews, kThumbnailWidth}),
                    at::zeros({n, kSyntheticKinds, kThumbnailWidth}),
                    at::zeros({n, kSyntheticKinds, kThumbnailWidth})};
  std::vector<std::uint8_t> usable(rows.size(), 0);
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    core::parallel_for(threads, std::min(kBlock, n - begin), [&](std::int64_t i) {
      const std::int64_t place = begin + i, row = rows[static_cast<std::size_t>(place)];
      try {
        const io::Image image = io::decode_image(dataset.get(row).bytes, {.range16 = range16});
        describe_views(image, row_of(sample.views, place));
        describe_copies(image, row, 0, row_of(sample.fit_copies, place));
        describe_copies(image, row, kSyntheticKinds, row_of(sample.test_copies, place));
        usable[static_cast<std::size_t>(place)] = 1;
      } catch (const core::InputError&) {  // reported when all images are described
      }
    });
    progress(std::min(begin + kBlock, n));
  }
  std::vector<std::int64_t> kept;
  for (std::int64_t i = 0; i < n; ++i) {
    if (usable[static_cast<std::size_t>(i)] != 0) kept.push_back(i);
  }
  const at::Tensor places = at::tensor(kept, at::kLong);
  for (at::Tensor* table : {&sample.views, &sample.fit_copies, &sample.test_copies})
    *table = table->index_select(0, places);
  for (std::size_t i = 0; i < kept.size(); ++i) sample.rows[i] = rows[static_cast<std::size_t>(kept[i])];
  sample.rows.resize(kept.size());
  return sample;
}

at::Tensor copy_similarities(const CopyDescriptor& descriptor, const CopySample& sample) {
  const at::Tensor products =  // [n, kSyntheticKinds, kViews]
      at::matmul(descriptor(sample.test_copies), descriptor(sample.views).transpose(1, 2));
  return products.amax(2).flatten();
}

CopyViews describe_images(const CopyDescriptor& descriptor, const data::Dataset& dataset, std::int64_t first,
                          std::int64_t count, const std::array<int, 2>& range16, int threads, const Reject& reject) {
  const at::Tensor thumbnails = at::zeros({count, kViews, kThumbnailWidth}), pixels = at::zeros({count}, at::kLong);
  auto* pixel_counts = pixels.mutable_data_ptr<std::int64_t>();
  std::vector<std::string> reasons(static_cast<std::size_t>(count));
  core::parallel_for(threads, count, [&](std::int64_t i) {
    try {
      const io::Image image = io::decode_image(dataset.get(first + i).bytes, {.range16 = range16});
      describe_views(image, row_of(thumbnails, i));
      pixel_counts[i] = static_cast<std::int64_t>(image.width) * image.height;
    } catch (const core::InputError& error) {
      reasons[static_cast<std::size_t>(i)] = error.what();
    }
  });
  for (std::int64_t i = 0; i < count; ++i) {
    if (pixel_counts[i] == 0) reject(dataset.key(first + i), reasons[static_cast<std::size_t>(i)]);
  }
  const at::Tensor usable = pixels.gt(0).to(at::kFloat).view({count, 1, 1});
  return {descriptor(thumbnails) * usable, pixels};
}

}  // namespace allosaur::curation
