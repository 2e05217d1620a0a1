#include "data/inspect.hpp"

#include <algorithm>
#include <numeric>
#include <span>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/thread_pool.hpp"
#include "io/image.hpp"

namespace allosaur::data {
namespace {

constexpr std::int64_t kBlock = 1024;  // images between two calls of progress

/// What is sent of an image: plain numbers. A broken one has width 0; its reason is sent as text.
struct Found {
  std::int64_t hash = 0, length = 0, width = 0, height = 0, kind = 0, reason_length = 0;
};

std::int64_t kind_of(const io::ImageInfo& info) {
  return (static_cast<std::int64_t>(info.format) << 32) + (std::int64_t{info.channels} << 8) + info.bits;
}

std::string name_of_kind(std::int64_t kind) {
  constexpr const char* kFormats[] = {"jpeg", "png", "webp", "tiff", "bmp", "pnm"};
  const std::int64_t channels = (kind >> 8) & 0xFFFFFF, bits = kind & 0xFF;
  return fmt::format("{}, {} channel{}{}", kFormats[kind >> 32], channels, channels == 1 ? "" : "s",
                     bits == 8 ? "" : fmt::format(" of {} bit{}", bits, bits == 1 ? "" : "s"));
}

Found look_at(const Dataset& dataset, std::int64_t row, const io::DecodeOptions& options, std::string& reason) {
  try {
    const Sample sample = dataset.get(row);
    const io::ImageInfo info = io::probe_image(sample.bytes);
    thread_local io::Image image;  // keeps its memory while the thread lives
    io::decode_image(sample.bytes, options, image);
    return {static_cast<std::int64_t>(core::hash_bytes(sample.bytes)), std::ssize(sample.bytes), info.width,
            info.height, kind_of(info)};
  } catch (const core::InputError& error) {
    reason = error.what();
    return {.reason_length = std::ssize(reason)};
  }
}

template <class Number>
Spread spread_of(const std::vector<Found>& found, Number Found::*number) {
  std::vector<std::int64_t> values;
  for (const Found& image : found) {
    if (image.width > 0) values.push_back(image.*number);
  }
  if (values.empty()) return {};
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  const auto [least, largest] = std::minmax_element(values.begin(), values.end());
  return {*least, *middle, *largest};
}

/// Rank 0: what the numbers of all images amount to.
Inspection sum_up(const Dataset& dataset, const std::vector<Found>& found, std::string_view reasons) {
  Inspection result;
  result.broken = dataset.problems();
  result.class_sizes.resize(dataset.class_names().size());
  std::vector<std::int64_t> by_hash;
  for (std::int64_t row = 0; row < std::ssize(found); ++row) {
    const Found& image = found[static_cast<std::size_t>(row)];
    if (image.width == 0) {
      result.broken.push_back(
          {dataset.key(row), std::string(reasons.substr(0, static_cast<std::size_t>(image.reason_length)))});
      reasons.remove_prefix(static_cast<std::size_t>(image.reason_length));
      continue;
    }
    ++result.images;
    result.bytes += image.length;
    ++result.kinds[name_of_kind(image.kind)];
    const std::int64_t label = dataset.label(row);
    ++(label < 0 ? result.unlabelled : result.class_sizes.at(static_cast<std::size_t>(label)));
    by_hash.push_back(row);
  }
  result.width = spread_of(found, &Found::width);
  result.height = spread_of(found, &Found::height);
  result.length = spread_of(found, &Found::length);

  const auto hash = [&](std::int64_t row) { return found[static_cast<std::size_t>(row)].hash; };
  std::sort(by_hash.begin(), by_hash.end(),
            [&](std::int64_t a, std::int64_t b) { return std::pair(hash(a), a) < std::pair(hash(b), b); });
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  for (std::size_t i = 1, first = 0; i < by_hash.size(); ++i) {
    if (hash(by_hash[i]) != hash(by_hash[first])) {
      first = i;
    } else {
      pairs.emplace_back(by_hash[i], by_hash[first]);
    }
  }
  std::sort(pairs.begin(), pairs.end());
  for (const auto& [row, earlier] : pairs) result.duplicates.emplace_back(dataset.key(row), dataset.key(earlier));
  return result;
}

}  // namespace

Inspection inspect(comm::Communicator& group, const Dataset& dataset, const PixelConfig& pixels, int threads,
                   const std::function<void(std::int64_t)>& progress) {
  const comm::Range rows = group.share(dataset.size());
  std::vector<Found> mine(static_cast<std::size_t>(rows.size()));
  const std::string reasons = comm::coordinate(group, [&] {
    std::vector<std::string> reason(mine.size());
    for (std::int64_t begin = 0; begin < rows.size(); begin += kBlock) {
      const std::int64_t end = std::min(begin + kBlock, rows.size());
      core::parallel_for(threads, end - begin, [&](std::int64_t i) {
        const auto at = static_cast<std::size_t>(begin + i);
        mine[at] = look_at(dataset, rows.first + begin + i, decode_options(pixels), reason[at]);
      });
      progress(end);
    }
    return std::accumulate(reason.begin(), reason.end(), std::string());
  });
  const std::string bytes(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(Found));
  const std::vector<std::string> found = group.gather(bytes), texts = group.gather(reasons);
  return comm::coordinate(group, [&] {
    if (group.rank() != 0) return Inspection();
    std::vector<Found> all(static_cast<std::size_t>(dataset.size()));
    for (auto* to = reinterpret_cast<char*>(all.data()); const std::string& part : found) {
      to = std::copy(part.begin(), part.end(), to);
    }
    return sum_up(dataset, all, std::accumulate(texts.begin(), texts.end(), std::string()));
  });
}

}  // namespace allosaur::data
