#include "jobs/kept_features.hpp"

#include <csignal>

#include <chrono>
#include <set>

#include <ATen/ATen.h>

#include "core/options.hpp"
#include "testing.hpp"

using namespace allosaur;
using testing::world;

namespace {

constexpr std::int64_t kImages = 200;  // three blocks and a part of one

/// keep_rows() in surroundings of its own, with a row [i, 2 i] for image i; remembers for which images it was asked.
struct Keeper {
  core::Options options;
  core::Log log{world().rank(), core::Level::error};
  comm::StopSignal stop;
  comm::Watchdog watchdog{log, world(), std::chrono::seconds(0)};
  std::set<std::int64_t> asked;

  std::optional<jobs::Arrays> run(comm::Communicator& group, const std::filesystem::path& folder,
                                  const std::string& identity, std::int64_t stop_at = -1) {
    jobs::Context context{group, options, log, stop, watchdog, 1};
    return jobs::keep_rows(context, folder / "features" / "rows", identity, kImages,
                           [&](comm::Range images, const auto& progress) -> std::optional<jobs::Arrays> {
                             const at::Tensor rows = at::empty({images.size(), 2}, at::kLong);
                             for (std::int64_t image = images.first; image < images.last; ++image) {
                               if (image == stop_at) std::raise(SIGUSR1);
                               if (stop.requested()) return {};
                               asked.insert(image);
                               rows[image - images.first] = at::tensor({image, 2 * image}, at::kLong);
                             }
                             progress(images.size());
                             return jobs::Arrays{{"rows", rows}};
                           });
  }
};

void check_rows(const std::optional<jobs::Arrays>& kept, const comm::Range& share) {
  CHECK(kept.has_value());
  if (!kept) return;
  const at::Tensor images = at::arange(share.first, share.last, at::kLong);
  CHECK(kept->at("rows").equal(at::stack({images, 2 * images}, 1)));
}

TEST_CASE("rows are kept in blocks: a run that was stopped goes on from them, on other ranks too") {
  const testing::TemporaryDirectory directory;
  CHECK_FALSE(Keeper().run(world(), directory.path(), "a", /*stop_at=*/130).has_value());

  const auto alone = world().split(world().rank(), 0);
  if (world().rank() == 0) {
    Keeper keeper;
    check_rows(keeper.run(*alone, directory.path(), "a"), {0, kImages});
    CHECK(keeper.asked.size() == kImages - 128);  // the first two blocks were there
    CHECK(*keeper.asked.begin() == 128);
  }
  world().barrier();
  Keeper again;
  check_rows(again.run(world(), directory.path(), "a"), world().share(kImages));
  CHECK(again.asked.empty());
  check_rows(again.run(world(), directory.path(), "b"), world().share(kImages));
  CHECK(world().sum(static_cast<std::int64_t>(again.asked.size())) == kImages);
}

}  // namespace
