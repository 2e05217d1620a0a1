#include <fstream>

#include "data/inspect.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {

namespace fs = std::filesystem;

TEST_CASE("what a source holds: kinds, sizes, classes, copies and damage") {
  const testing::TemporaryDirectory directory;
  const fs::path root = directory.path();
  testing::on_first_rank([&] {
    testing::write_pictures(root / "cat", 4);  // 24 x 20 to 27 x 23
    testing::write_pictures(root / "dog", 1);  // the bytes of cat/00.jpg
    const std::vector<std::uint16_t> deep(30 * 40, 999);
    testing::write_file(root / "dog/deep.png", io::encode_grey16_png(deep, 30, 40));
    testing::write_file(root / "dog/empty.jpg", {});
    testing::write_file(root / "loose.png", io::encode_png(testing::picture(9, 8, 8)));
    fs::copy(testing::data_directory() / "io/channels5.tif", root / "cat/channels5.tif");
  });
  const auto source = data::open_dataset(testing::world(), root, data::Labels::where_known);
  std::int64_t seen = 0;
  const data::Inspection found =
      data::inspect(testing::world(), *source, {}, 2, [&](std::int64_t done) { seen = done; });
  CHECK(testing::world().sum(seen) == source->size());
  if (testing::world().rank() != 0) {
    CHECK(found.images == 0);
    return;
  }
  CHECK(found.images == 7);
  CHECK(found.kinds == std::map<std::string, std::int64_t>{
                           {"jpeg, 3 channels", 5}, {"png, 1 channel of 16 bits", 1}, {"png, 3 channels", 1}});
  CHECK(found.class_sizes == std::vector<std::int64_t>{4, 2});
  CHECK(found.unlabelled == 1);
  CHECK(found.width.least == 8);
  CHECK(found.height.largest == 40);
  using Pairs = std::vector<std::pair<std::string, std::string>>;
  CHECK(found.duplicates == Pairs{{"dog/00.jpg", "cat/00.jpg"}});
  REQUIRE(found.broken.size() == 2);
  CHECK(found.broken[0].key == "cat/channels5.tif");
  CHECK(found.broken[0].reason.find("3 channels are wanted") != std::string::npos);
  CHECK(found.broken[1].key == "dog/empty.jpg");
}

}  // namespace allosaur
