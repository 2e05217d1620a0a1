#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "data/augment.hpp"
#include "testing.hpp"

// What is drawn, against the published law: torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter,
// RandomGrayscale, GaussianBlur and RandomSolarize. All of it has a law that can be written down.

namespace allosaur {
namespace {

constexpr int kDraws = 20000;
constexpr int kWidth = 6000, kHeight = 4000;  // large: rounding to whole pixels does not show

/// Kolmogorov's statistic: sqrt(n) times the largest distance between the draws' distribution and `law`. Of draws that
/// follow the law, one set in 10,000 exceeds 2.23.
template <class Law>
double kolmogorov(std::vector<double> draws, const Law& law) {
  std::ranges::sort(draws);
  const auto n = static_cast<double>(draws.size());
  double largest = 0;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const double expected = law(draws[i]);
    largest = std::max({largest, static_cast<double>(i + 1) / n - expected, expected - static_cast<double>(i) / n});
  }
  return std::sqrt(n) * largest;
}
constexpr double kLimit = 2.23;

auto uniform(double low, double high) {
  return [=](double x) { return std::clamp((x - low) / (high - low), 0.0, 1.0); };
}

/// The law of x in [low, high] whose density is proportional to `density`.
template <class Density>
auto law_of(double low, double high, const Density& density) {
  constexpr int kCells = 20000;
  std::vector<double> sums{0};
  for (int i = 0; i < kCells; ++i) sums.push_back(sums.back() + density(low + (high - low) * (i + 0.5) / kCells));
  return [=](double x) {
    const double at = std::clamp((x - low) / (high - low), 0.0, 1.0) * kCells;
    const auto cell = std::min(static_cast<std::size_t>(at), static_cast<std::size_t>(kCells - 1));
    const double within = sums[cell] + (at - static_cast<double>(cell)) * (sums[cell + 1] - sums[cell]);
    return within / sums.back();
  };
}

/// How many standard deviations the number of successes is from the expected one.
double surprise(std::int64_t successes, std::int64_t trials, double probability) {
  const auto n = static_cast<double>(trials);
  return std::abs(static_cast<double>(successes) - n * probability) /
         std::max(1e-9, std::sqrt(n * probability * (1 - probability)));
}
constexpr double kDeviations = 4;  // exceeded once in 16,000

std::vector<data::CropPlan> draw(data::CropKind kind) {
  const data::AugmentConfig config;
  std::vector<data::CropPlan> plans;
  for (int i = 0; i < kDraws; ++i) {
    core::Random random(3, core::Purpose::global_crop, static_cast<std::uint64_t>(i), static_cast<std::uint32_t>(kind));
    plans.push_back(data::draw_crop(config, kind, kWidth, kHeight, random));
  }
  return plans;
}

}  // namespace

TEST_CASE("boxes of crops follow the published law") {
  // Area and log aspect are uniform, together, over the boxes that fit into the image.
  const double limit = std::log(4.0 / 3.0), shape = std::log(double(kWidth) / kHeight);
  for (const auto& [kind, low, high] :
       {std::tuple{data::CropKind::global1, 0.32, 1.0}, {data::CropKind::local, 0.05, 0.32}}) {
    CAPTURE(low);
    std::vector<double> areas, aspects, lefts, tops;
    for (const data::CropPlan& plan : draw(kind)) {
      const data::CropBox& box = plan.box;
      REQUIRE((box.left >= 0 && box.top >= 0 && box.left + box.width <= kWidth && box.top + box.height <= kHeight));
      areas.push_back(double(box.width) * box.height / (double(kWidth) * kHeight));
      aspects.push_back(std::log(double(box.width) / box.height));
      lefts.push_back((box.left + 0.5) / (kWidth - box.width + 1));
      tops.push_back((box.top + 0.5) / (kHeight - box.height + 1));
    }
    const auto fitting_aspects = [&](double area) {
      return std::max(0.0, std::min(limit, shape - std::log(area)) - std::max(-limit, shape + std::log(area)));
    };
    const auto fitting_areas = [&, low = low, high = high](double aspect) {
      return std::max(0.0, std::min({high, std::exp(shape - aspect), std::exp(aspect - shape)}) - low);
    };
    CHECK(kolmogorov(areas, law_of(low, high, fitting_aspects)) < kLimit);
    CHECK(kolmogorov(aspects, law_of(-limit, limit, fitting_areas)) < kLimit);
    CHECK(kolmogorov(lefts, uniform(0, 1)) < kLimit);
    CHECK(kolmogorov(tops, uniform(0, 1)) < kLimit);
  }
}

TEST_CASE("flips, colours, blur and solarisation follow the published law") {
  struct Expected {
    data::CropKind kind;
    double blur, solarize;
  };
  for (const Expected& expected : {Expected{data::CropKind::global1, 0.0, 0.0},
                                   Expected{data::CropKind::global2, 0.9, 0.2},
                                   {data::CropKind::local, 0.5, 0.0}}) {
    CAPTURE(static_cast<int>(expected.kind));
    std::int64_t flips = 0, greys = 0, solarized = 0;
    std::vector<double> brightness, contrast, saturation, hue, sigma;
    std::map<std::array<data::ColorOp, 4>, std::int64_t> orders;
    for (const data::CropPlan& plan : draw(expected.kind)) {
      flips += plan.flip;
      greys += plan.grayscale;
      solarized += plan.solarize;
      if (plan.blur_sigma) sigma.push_back(*plan.blur_sigma);
      if (!plan.jitter) continue;
      ++orders[plan.jitter->order];
      brightness.push_back(plan.jitter->brightness);
      contrast.push_back(plan.jitter->contrast);
      saturation.push_back(plan.jitter->saturation);
      hue.push_back(plan.jitter->hue);
    }
    CHECK(surprise(flips, kDraws, 0.5) < kDeviations);
    CHECK(surprise(greys, kDraws, 0.2) < kDeviations);
    CHECK(surprise(std::ssize(hue), kDraws, 0.8) < kDeviations);
    CHECK(surprise(std::ssize(sigma), kDraws, expected.blur) < kDeviations);
    CHECK(surprise(solarized, kDraws, expected.solarize) < kDeviations);
    CHECK(kolmogorov(brightness, uniform(0.6, 1.4)) < kLimit);
    CHECK(kolmogorov(contrast, uniform(0.6, 1.4)) < kLimit);
    CHECK(kolmogorov(saturation, uniform(0.8, 1.2)) < kLimit);
    CHECK(kolmogorov(hue, uniform(-0.1, 0.1)) < kLimit);
    if (!sigma.empty()) CHECK(kolmogorov(sigma, uniform(0.1, 2.0)) < kLimit);
    REQUIRE(orders.size() == 24);
    double chi_square = 0;  // 23 degrees of freedom: exceeds 56 once in 8,000
    for (const auto& [order, count] : orders) {
      const double mean = static_cast<double>(hue.size()) / 24, distance = static_cast<double>(count) - mean;
      chi_square += distance * distance / mean;
    }
    CHECK(chi_square < 56);
  }
}

}  // namespace allosaur
