#include <fstream>

#include <ATen/ATen.h>

#include "core/error.hpp"
#include "data/packed.hpp"
#include "io/sharded_array.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

namespace fs = std::filesystem;

/// Collective. A labelled folder of 10 + 3 images, one of them broken, packed in contiguous parts; returns this rank's
/// result.
data::PackedResult pack(const fs::path& root) {
  comm::Communicator& world = testing::world();
  if (world.rank() == 0) {
    testing::write_pictures(root / "source/cat", 10);
    testing::write_pictures(root / "source/dog", 3);
    testing::write_file(root / "source/dog/broken.jpg", std::vector<std::byte>(100));
    fs::create_directories(root / "packed");
  }
  world.barrier();
  const auto source = data::open_dataset(world, root / "source", data::Labels::required);
  std::vector<std::int64_t> mine;
  data::PackedColumns columns;
  columns.strings.push_back({"origin", {}});
  for (std::int64_t i = world.rank() * source->size() / world.size();
       i < (world.rank() + 1) * source->size() / world.size(); ++i) {
    mine.push_back(i);
    columns.strings[0].second.push_back("from " + source->key(i));
  }
  columns.numbers.push_back({"similarity", at::tensor(mine, at::kLong).to(at::kFloat) / 10});
  return data::write_packed(world, *source, mine, columns, root / "packed" / data::kPackedIndexName, 2,
                            [](std::int64_t) {});
}

}  // namespace

TEST_CASE("packed images are those of the source, without the broken one") {
  const testing::TemporaryDirectory directory;
  const data::PackedResult result = pack(directory.path());
  comm::Communicator& world = testing::world();
  CHECK(world.sum(result.images) == 13);
  CHECK(world.sum(static_cast<std::int64_t>(result.rejected.size())) == 1);
  if (!result.rejected.empty()) CHECK(result.rejected[0].key == "dog/broken.jpg");

  const auto source = data::open_dataset(world, directory.path() / "source", data::Labels::required);
  const auto packed = data::open_dataset(world, directory.path() / "packed", data::Labels::required);
  REQUIRE(packed->size() == 13);
  CHECK(packed->class_names() == std::vector<std::string>{"cat", "dog"});
  std::int64_t row = 0;
  for (std::int64_t i = 0; i < source->size(); ++i) {
    if (source->key(i) == "dog/broken.jpg") continue;
    const data::Sample expected = source->get(i), sample = packed->get(row);
    CHECK((sample.bytes == expected.bytes));
    CHECK(sample.key == expected.key);
    CHECK(sample.label == expected.label);
    CHECK(packed->length(row) == source->length(i));
    ++row;
  }
  const fs::path index = directory.path() / "packed" / data::kPackedIndexName;
  CHECK(data::open_dataset(world, index, data::Labels::ignored)->label(0) == -1);

  const io::ShardedReader table(index);
  CHECK(table.read_strings("origin").at(12) == "from dog/02.jpg");
  CHECK(table.read("similarity")[12].item<float>() == doctest::Approx(1.2));
}

TEST_CASE("a flipped byte in a file of images is named") {
  const testing::TemporaryDirectory directory;
  pack(directory.path());
  comm::Communicator& world = testing::world();
  const auto packed = data::open_dataset(world, directory.path() / "packed", data::Labels::ignored);
  const fs::path file = directory.path() / "packed/images-bytes.00000.h5";
  const std::vector<std::byte> image = packed->get(0).bytes;
  world.barrier();
  if (world.rank() == 0) {
    std::vector<std::byte> bytes = testing::read_file(file);
    const auto at = std::search(bytes.begin(), bytes.end(), image.begin(), image.end());
    if (at != bytes.end()) *(at + 40) ^= std::byte{1};
    testing::write_file(file, bytes);
  }
  world.barrier();
  std::string message;
  try {
    data::open_dataset(world, directory.path() / "packed", data::Labels::ignored)->get(0);
  } catch (const core::StorageError& error) {
    message = error.what();
  }
  CHECK(message.find("images-bytes.00000.h5") != std::string::npos);
  CHECK(message.find("cat/00.jpg") != std::string::npos);
  CHECK(packed->get(1).key == "cat/01.jpg");  // others are still readable
}

TEST_CASE("a missing or truncated file of images is named") {
  const testing::TemporaryDirectory directory;
  pack(directory.path());
  comm::Communicator& world = testing::world();
  const fs::path file = directory.path() / "packed/images-bytes.00000.h5";
  const auto message = [&] {
    try {
      data::open_dataset(world, directory.path() / "packed", data::Labels::ignored);
    } catch (const core::Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  for (const bool truncate : {true, false}) {
    world.barrier();
    if (world.rank() == 0) {
      if (truncate) fs::resize_file(file, 100);
      if (!truncate) fs::remove(file);
    }
    world.barrier();
    CHECK(message().find("images-bytes.00000.h5") != std::string::npos);
  }
}

}  // namespace allosaur
