#include <ATen/ATen.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <tuple>
#include <vector>

#include "core/random.hpp"
#include "curation/deduplicate.hpp"
#include "curation/retrieve.hpp"
#include "search/slices.hpp"

namespace allosaur {
namespace {

using namespace curation;
using testing::world;

at::Tensor unit_rows(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
  core::Random random(seed, core::Purpose::subset, 0);
  const at::Tensor table = at::empty({rows, width});
  for (std::int64_t i = 0; i < table.numel(); ++i)
    table.mutable_data_ptr<float>()[i] = static_cast<float>(random.normal());
  return table / table.norm(2, {1}, true);
}

/// A table in which many rows are noisy copies of earlier ones. f32 [rows, 2, width]: the second view is a noisier one.
at::Tensor table_with_copies(std::int64_t rows, std::uint64_t seed) {
  const at::Tensor table = unit_rows(rows, 8, seed);
  core::Random random(seed, core::Purpose::subset, 1);
  for (std::int64_t i = 1; i < rows; ++i) {
    if (random.chance(0.5)) table[i] = table[random.below(i)] + random.uniform(0, 0.4) * table[i];
  }
  const at::Tensor views = at::stack({table, table + 0.3 * unit_rows(rows, 8, seed + 1)}, 1);
  return views / views.norm(2, {2}, true);
}

struct Expected {
  std::vector<Fate> fates;
  std::vector<std::int64_t> cause;
  std::map<std::int64_t, std::int64_t> components;
  std::int64_t edges = 0;
};

/// The same by plain loops.
Expected serial_deduplication(const at::Tensor& views, const std::vector<std::int64_t>& pixels, std::int64_t pool,
                              const DeduplicationConfig& config) {
  const std::int64_t n = views.size(0);
  std::map<std::pair<std::int64_t, std::int64_t>, float> pairs;
  for (std::int64_t view = 0; view < views.size(1); ++view) {
    const at::Tensor products = at::mm(views.select(1, view), views.select(1, 0).t());
    for (std::int64_t i = 0; i < n; ++i) {
      const float* row = products.const_data_ptr<float>() + i * n;
      std::vector<std::int64_t> order(static_cast<std::size_t>(n));
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return row[a] > row[b]; });
      order.resize(static_cast<std::size_t>(std::min(n, config.k + 1)));
      for (const std::int64_t j : order) {
        if (j == i) continue;
        float& similarity = pairs.try_emplace({std::min(i, j), std::max(i, j)}, -1.0F).first->second;
        similarity = std::max(similarity, row[j]);
      }
    }
  }
  const auto components = [&](std::int64_t end, double threshold) {
    std::vector<std::int64_t> label(static_cast<std::size_t>(n));
    std::iota(label.begin(), label.end(), 0);
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& [pair, similarity] : pairs) {
        if (pair.second >= end || !(similarity > threshold)) continue;
        auto &a = label[static_cast<std::size_t>(pair.first)], &b = label[static_cast<std::size_t>(pair.second)];
        changed |= a != b;
        a = b = std::min(a, b);
      }
    }
    return label;
  };
  const auto own = components(pool, config.duplicate_threshold), any = components(n, config.reference_threshold);
  Expected expected{std::vector<Fate>(static_cast<std::size_t>(n), Fate::kept),
                    std::vector<std::int64_t>(static_cast<std::size_t>(n), -1),
                    {},
                    0};
  for (const auto& [pair, similarity] : pairs)
    expected.edges += pair.second < pool && similarity > config.duplicate_threshold;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto at_i = static_cast<std::size_t>(i);
    if (pixels[at_i] == 0) {
      expected.fates[at_i] = Fate::rejected;
      continue;
    }
    if (i >= pool) continue;
    std::int64_t representative = i, size = 0, reference = -1;
    for (std::int64_t j = 0; j < n; ++j) {
      const auto at_j = static_cast<std::size_t>(j);
      if (j < pool && pixels[at_j] > 0 && own[at_j] == own[at_i]) {
        ++size;
        const auto best = static_cast<std::size_t>(representative);
        if (std::pair(-pixels[at_j], j) < std::pair(-pixels[best], representative)) representative = j;
      }
      if (j >= pool && reference < 0 && any[at_j] == any[at_i]) reference = j;
    }
    if (representative == i) ++expected.components[size];
    expected.fates[at_i] = representative != i ? Fate::duplicate : reference >= 0 ? Fate::reference_copy : Fate::kept;
    expected.cause[at_i] = representative != i ? representative : reference;
  }
  return expected;
}

void check_deduplication(const at::Tensor& views, std::int64_t pool, const DeduplicationConfig& config) {
  const std::int64_t n = views.size(0);
  std::vector<std::int64_t> pixels(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) pixels[static_cast<std::size_t>(i)] = i % 17 == 5 ? 0 : 100 * (1 + i * 7 % 4);
  const at::Tensor usable = at::tensor(pixels, at::kLong).gt(0).to(at::kFloat).view({n, 1, 1});
  const at::Tensor table = views * usable;
  const Expected expected = serial_deduplication(table, pixels, pool, config);

  const auto [first, rows] = testing::uneven_slice(n);
  const Deduplication found = deduplicate(world(), table.narrow(0, first, rows),
                                          at::tensor(pixels, at::kLong).narrow(0, first, rows), pool, config);
  const bool fates_agree = std::equal(found.fates.begin(), found.fates.end(), expected.fates.begin() + first);
  const bool causes_agree = std::equal(found.cause.begin(), found.cause.end(), expected.cause.begin() + first);
  CHECK(fates_agree);
  CHECK(causes_agree);
  const bool components_agree = found.components == expected.components;
  CHECK(components_agree);
  CHECK(found.edges == expected.edges);
  const auto in_pool = std::vector<Fate>(expected.fates.begin(), expected.fates.begin() + pool);
  CHECK(found.duplicates == std::ranges::count(in_pool, Fate::duplicate));
  CHECK(found.reference_copies == std::ranges::count(in_pool, Fate::reference_copy));
  CHECK(found.rejected == std::ranges::count(in_pool, Fate::rejected));
  if (found.edges > 0) CHECK(found.least_similarity > config.duplicate_threshold);
  CHECK(found.mean_similarity >= found.least_similarity);
}

TEST_CASE("deduplicate equals plain loops") {
  for (const std::int64_t n : {1, 60, 400}) {
    for (const std::int64_t references : {std::int64_t{0}, n / 5}) {
      CAPTURE(n);
      CAPTURE(references);
      const at::Tensor views = table_with_copies(n, static_cast<std::uint64_t>(n));
      check_deduplication(views, n - references, {.k = 64, .duplicate_threshold = 0.93, .reference_threshold = 0.9});
      check_deduplication(views, n - references, {.k = 3, .duplicate_threshold = 0.8, .reference_threshold = 0.8});
    }
  }
}

TEST_CASE("more neighbours than there are images are all of them") {
  const at::Tensor views = table_with_copies(60, 5);
  check_deduplication(views, 50, {.k = 1000000000, .duplicate_threshold = 0.9, .reference_threshold = 0.8});
}

TEST_CASE("of a pool of equal images one stays, the largest") {
  const std::int64_t n = 150;
  at::Tensor views = at::zeros({n, 1, 4});
  views.select(2, 1).fill_(1);
  const auto [first, rows] = testing::uneven_slice(n);
  const at::Tensor pixels = at::arange(first, first + rows, at::kLong).remainder(100).add(1);
  const Deduplication found = deduplicate(world(), views.narrow(0, first, rows), pixels, n,
                                          {.k = 64, .duplicate_threshold = 0.9, .reference_threshold = 0.9});
  CHECK(found.duplicates == n - 1);
  const bool one_component = found.components == std::map<std::int64_t, std::int64_t>{{n, 1}};
  CHECK(one_component);
  bool right = true;
  for (std::int64_t i = 0; i < rows; ++i)
    right &= (found.fates[static_cast<std::size_t>(i)] == Fate::kept) == (first + i == 99);
  CHECK(right);
}

TEST_CASE("nearest_in_pool sees neither the image itself nor references") {
  const std::int64_t n = 90, pool = 70;
  const at::Tensor views = table_with_copies(n, 3);
  const auto [first, rows] = testing::uneven_slice(n);
  std::vector<std::int64_t> mine;
  for (std::int64_t i = 0; i < rows && first + i < pool; i += 2) mine.push_back(i);
  const at::Tensor found = nearest_in_pool(world(), views.narrow(0, first, rows), pool, mine);
  bool right = found.numel() == static_cast<std::int64_t>(mine.size());
  for (std::size_t m = 0; m < mine.size() && right; ++m) {
    const at::Tensor products = at::mm(views[first + mine[m]], views.select(1, 0).narrow(0, 0, pool).t());
    products.select(1, first + mine[m]).fill_(-2);
    right = std::abs(products.max().item<float>() - found[static_cast<std::int64_t>(m)].item<float>()) < 1e-5F;
  }
  CHECK(right);
}

TEST_CASE("retrieve is the union of the nearest images, and grows to a target") {
  const at::Tensor all_queries = unit_rows(23, 6, 1), all_images = unit_rows(300, 6, 2);
  const auto [first_query, query_count] = testing::uneven_slice(23);
  const auto [first_image, image_count] = testing::uneven_slice(300);
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < query_count; ++i) ids.push_back(1000 + first_query + i);
  const at::Tensor products = at::mm(all_queries, all_images.t());
  const at::Tensor order = std::get<1>(products.sort(true, 1, true));
  const auto union_of = [&](std::int64_t k) {
    std::set<std::int64_t> images;
    for (std::int64_t q = 0; q < 23; ++q) {
      for (std::int64_t j = 0; j < std::min<std::int64_t>(k, 300); ++j) images.insert(order[q][j].item<std::int64_t>());
    }
    return images;
  };
  for (const RetrievalConfig config : {RetrievalConfig{1, 0}, {4, 0}, {2, 150}, {2, 1000}, {500, 0}}) {
    CAPTURE(config.k);
    CAPTURE(config.target);
    const Retrieval found = retrieve(world(), all_queries.narrow(0, first_query, query_count), ids,
                                     all_images.narrow(0, first_image, image_count), config);
    std::int64_t k = config.k;
    while (static_cast<std::int64_t>(union_of(k).size()) < config.target && k < 300) ++k;
    const std::set<std::int64_t> expected = union_of(k);
    CHECK(found.total == static_cast<std::int64_t>(expected.size()));
    CHECK(found.k == k);
    // Images are as similar as the best of the queries that found them, in the last search.
    std::int64_t searched = config.target >= 300 ? 300 : std::min<std::int64_t>(config.k, 300);
    while (searched < 300 && static_cast<std::int64_t>(union_of(searched).size()) < config.target)
      searched = std::min<std::int64_t>(2 * searched, 300);
    const at::Tensor places = order.argsort(1, false).lt(searched);  // [23, 300]
    const at::Tensor best = products.masked_fill(places.logical_not(), -2).amax(0);
    std::set<std::int64_t> mine;
    bool nearest_right = true;
    for (const Retrieved& image : found.images) {
      mine.insert(first_image + image.place);
      const at::Tensor column = products.select(1, first_image + image.place);
      nearest_right &= std::abs(column[image.nearest - 1000].item<float>() - image.similarity) < 1e-5F;
      nearest_right &= std::abs(best[first_image + image.place].item<float>() - image.similarity) < 1e-5F;
    }
    CHECK(nearest_right);
    std::set<std::int64_t> expected_here;
    for (const std::int64_t image : expected) {
      if (image >= first_image && image < first_image + image_count) expected_here.insert(image);
    }
    const bool union_right = mine == expected_here;
    CHECK(union_right);
  }
}

}  // namespace
}  // namespace allosaur
