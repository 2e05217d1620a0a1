#include "data/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/random.hpp"

namespace allosaur::data {
namespace {

constexpr std::int64_t kBlock = 10'000;

/// Whole shares of a block in proportion to the weights: rounded down, then one more for the largest remainders.
std::vector<std::int64_t> shares_of(const std::vector<double>& weights) {
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<std::int64_t> shares;
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  const auto exact = [&](std::size_t i) { return static_cast<double>(kBlock) * weights[i] / total; };
  for (std::size_t i = 0; i < weights.size(); ++i) shares.push_back(static_cast<std::int64_t>(exact(i)));
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return exact(a) - std::floor(exact(a)) > exact(b) - std::floor(exact(b));
  });
  const std::int64_t left = kBlock - std::accumulate(shares.begin(), shares.end(), std::int64_t{0});
  for (std::size_t i = 0; i < static_cast<std::size_t>(left); ++i) ++shares[order[i % order.size()]];
  return shares;
}

}  // namespace

Sampler::Sampler(std::vector<std::int64_t> sizes, const std::vector<double>& weights, std::uint64_t seed)
    : seed_(seed), size_(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})), block_(size_) {
  const bool positive =
      std::all_of(weights.begin(), weights.end(), [](double weight) { return weight > 0 && std::isfinite(weight); });
  if (!weights.empty() && (weights.size() != sizes.size() || !positive)) {
    throw core::UsageError(fmt::format("{} sources need as many weights, each above 0, or none; {} are given.",
                                       sizes.size(), weights.size()));
  }
  if (weights.empty() || sizes.size() == 1) {
    sources_.push_back({0, size_, 0, size_, seed});
    return;
  }
  block_ = kBlock;
  const std::vector<std::int64_t> shares = shares_of(weights);
  std::int64_t first = 0, begin = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (shares[i] == 0) {
      throw core::UsageError(fmt::format("The weight of source {} is less than one part in {} of all.", i + 1, kBlock));
    }
    core::Random random(seed, core::Purpose::mixture, i);
    sources_.push_back({first, sizes[i], begin, shares[i], random.bits64()});
    first += sizes[i];
    begin += shares[i];
  }
}

const Sampler::Source& Sampler::source_at(std::int64_t slot) const {
  return *std::find_if(sources_.begin(), sources_.end(),
                       [&](const Source& source) { return slot < source.begin + source.share; });
}

std::int64_t Sampler::operator()(std::int64_t position) const {
  const std::int64_t block = position / block_, place = position % block_;
  const std::int64_t slot = core::Permutation(block_, seed_, static_cast<std::uint64_t>(block))(place);
  if (sources_.size() == 1) return slot;  // the block is an epoch
  const Source& source = source_at(slot);
  const std::int64_t turn = block * source.share + slot - source.begin;  // of this source, since the start
  return source.first + core::Permutation(source.size, source.seed,
                                          static_cast<std::uint64_t>(turn / source.size))(turn % source.size);
}

std::int64_t Sampler::replacement(std::int64_t position, std::uint32_t attempt) const {
  const std::int64_t block = position / block_, place = position % block_;
  const Source& source = source_at(core::Permutation(block_, seed_, static_cast<std::uint64_t>(block))(place));
  core::Random random(seed_, core::Purpose::sample_order, static_cast<std::uint64_t>(position), attempt);
  return source.first + random.below(source.size);
}

}  // namespace allosaur::data
