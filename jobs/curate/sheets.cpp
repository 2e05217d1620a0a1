#include "jobs/curate/sheets.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string_view>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "io/image.hpp"
#include "report/contact_sheet.hpp"

namespace allosaur::jobs {
namespace {

constexpr std::size_t kShown = 32;

/// At most kShown of the pairs, spread evenly.
std::vector<std::int64_t> spread(std::span<const std::int64_t> rows) {
  const std::size_t pairs = rows.size() / 2, count = std::min(pairs, kShown);
  std::vector<std::int64_t> chosen;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = 2 * (i * pairs / count);
    chosen.insert(chosen.end(), {rows[at], rows[at + 1]});
  }
  return chosen;
}

}  // namespace

void write_sheet(Context& context, const data::Dataset& images, const std::vector<ShownPair>& pairs,
                 const std::array<int, 2>& range16, const std::filesystem::path& file) {
  comm::Communicator& world = context.world;
  std::vector<std::int64_t> mine;
  for (const ShownPair& pair : pairs) mine.insert(mine.end(), {pair.left, pair.right});
  mine = spread(mine);
  const std::vector<std::int64_t> counts = world.gather_all(std::ssize(mine));
  std::int64_t total = 0;
  for (const std::int64_t count : counts) total += count;
  std::vector<std::int64_t> all(static_cast<std::size_t>(total));
  world.all_gather_counts(std::span(mine), std::span(all), counts);
  comm::coordinate(world, [&] {
    if (world.rank() != 0 || all.empty()) return;
    const std::vector<std::int64_t> shown = spread(all);
    std::vector<std::array<io::Image, 2>> pictures;
    for (std::size_t i = 0; i < shown.size(); i += 2) {
      try {
        const auto decode = [&](std::int64_t row) {
          return io::decode_image(images.get(row).bytes, {.range16 = range16});
        };
        pictures.push_back({decode(shown[i]), decode(shown[i + 1])});
      } catch (const core::InputError&) {
        continue;  // a picture of so many channels, or one that has gone meanwhile
      }
    }
    if (pictures.empty()) return;
    const std::vector<std::byte> png = io::encode_png(report::contact_sheet(pictures));
    core::write_atomically(file, std::string_view(reinterpret_cast<const char*>(png.data()), png.size()));
  });
  context.watchdog.feed();
}

}  // namespace allosaur::jobs
