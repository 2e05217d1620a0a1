#include "io/hdf5.hpp"

#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/error.hpp"
#include "core/files.hpp"
#include "full_disk.hpp"
#include "plain_file.hpp"
#include "testing.hpp"

using namespace allosaur;
namespace hdf5 = io::hdf5;

namespace {

/// A fresh file name in the test's folder, another one on each rank.
std::filesystem::path own(const testing::TemporaryDirectory& directory, const char* name) {
  return directory.path() / (std::to_string(testing::world().rank()) + name);
}

std::vector<float> numbers(std::size_t n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.5F);
  return values;
}

}  // namespace

TEST_CASE("hdf5: datasets of every type") {
  const testing::TemporaryDirectory directory;
  const auto path = own(directory, "types.h5");
  const std::vector<std::int64_t> shape{6, 2};
  for (const auto dtype : {comm::DType::u8, comm::DType::i32, comm::DType::i64, comm::DType::f16, comm::DType::bf16,
                           comm::DType::f32, comm::DType::f64}) {
    CAPTURE(comm::name_of(dtype));
    std::vector<std::byte> bytes(12 * comm::size_of(dtype)), read(bytes.size() / 2);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(5 * i + 1);
    {
      hdf5::File file(path, hdf5::Access::create);
      hdf5::Dataset dataset = file.root().create_dataset("deep/down/x", dtype, shape);
      CHECK_THROWS_AS(dataset.file_offset(), core::StorageError);  // nothing is written
      dataset.write({bytes.data(), 6, dtype});
      dataset.write({bytes.data() + bytes.size() / 2, 6, dtype}, 3);
      dataset.close();
      file.close();
    }
    const hdf5::File file(path, hdf5::Access::read);
    const hdf5::Dataset dataset = file.root().group("deep").dataset("down/x");
    CHECK(dataset.dtype() == dtype);
    CHECK(dataset.shape() == shape);
    dataset.read({read.data(), 6, dtype}, 2);
    CHECK(std::equal(read.begin(), read.end(), bytes.begin() + std::ssize(bytes) / 3));
    std::ifstream raw(path, std::ios::binary);
    raw.seekg(dataset.file_offset());
    raw.read(reinterpret_cast<char*>(read.data()), std::ssize(read));
    CHECK(std::equal(read.begin(), read.end(), bytes.begin()));
  }
  CHECK(hdf5::open_objects() == 0);
}

TEST_CASE("hdf5: groups, strings and attributes") {
  const testing::TemporaryDirectory directory;
  const auto path = own(directory, "text.h5");
  const std::vector<std::string> keys{"a", "", "größer/als.jpg", std::string(300, 'x')};
  const std::string page(200'000, 'p');  // larger than an object header may be
  {
    hdf5::File file(path, hdf5::Access::create);
    hdf5::Group root = file.root();
    root.write_strings("keys", keys);
    root.write_strings("none", {});
    root.create_group("b/c").set_attribute("count", 7);
    root.set_attribute("text", "first");
    root.set_attribute("text", "second");
    root.set_attribute("empty", "");
    root.set_attribute("page", page);
    root.set_attribute("negative", std::int64_t{-1} << 60);
    CHECK_THROWS_AS(root.create_group("b/c"), core::StorageError);
    CHECK_THROWS_AS(file.close(), std::logic_error);  // the group would keep it open
    root = {};
    file.close();
  }
  const hdf5::File file(path, hdf5::Access::read);
  const hdf5::Group root = file.root();
  CHECK(root.names() == std::vector<std::string>{"b", "keys", "none"});
  CHECK(root.strings("keys") == keys);
  CHECK(root.strings("none").empty());
  CHECK(root.text_attribute("text") == "second");
  CHECK(root.text_attribute("empty").empty());
  CHECK(root.text_attribute("page") == page);
  CHECK(root.integer_attribute("negative") == std::int64_t{-1} << 60);
  CHECK(root.group("b/c").integer_attribute("count") == 7);
  CHECK(root.has("b/c"));
  CHECK_FALSE(root.has("b/d"));
  CHECK_FALSE(root.has("x/c"));
  CHECK_FALSE(root.has_attribute("other"));
  CHECK_THROWS_AS(root.strings("b"), core::StorageError);
  CHECK_THROWS_AS(root.integer_attribute("text"), core::StorageError);
  CHECK_THROWS_WITH_AS(root.text_attribute("negative"), doctest::Contains("text.h5:/@negative"), core::StorageError);
}

TEST_CASE("hdf5: no object stays open") {
  const testing::TemporaryDirectory directory;
  const auto path = own(directory, "open.h5");
  {
    hdf5::File file(path, hdf5::Access::create);
    hdf5::Group group = file.root().create_group("g");
    hdf5::Dataset dataset = group.create_dataset("x", comm::DType::u8, std::vector<std::int64_t>{4});
    CHECK(hdf5::open_objects() == 3);
    const hdf5::Dataset moved = std::move(dataset);
    CHECK(hdf5::open_objects() == 3);
    CHECK_THROWS_AS(file.close(), std::logic_error);
  }
  CHECK(hdf5::open_objects() == 0);
}

TEST_CASE("hdf5: errors name file and object") {
  const testing::TemporaryDirectory directory;
  const auto path = own(directory, "errors.h5");
  CHECK_THROWS_WITH_AS(hdf5::File(path, hdf5::Access::read), doctest::Contains("No such file"), core::StorageError);
  testing::overwrite(path, std::string(5000, 'x'));
  CHECK_THROWS_WITH_AS(hdf5::File(path, hdf5::Access::read), doctest::Contains("errors.h5: cannot open"),
                       core::StorageError);
  {
    hdf5::File file(path, hdf5::Access::create);
    std::vector<float> values = numbers(2000);
    hdf5::Dataset dataset = file.root().create_dataset("x", comm::DType::f32, std::vector<std::int64_t>{500, 4});
    dataset.write(std::span(values));
    CHECK_THROWS_WITH_AS(dataset.write(std::span(values), 1), doctest::Contains("errors.h5:/x"), core::StorageError);
    dataset.close();
    file.close();
  }
  {
    const hdf5::File file(path, hdf5::Access::read);
    const hdf5::Group root = file.root();
    std::vector<double> wide(4);
    std::vector<float> narrow(3);
    CHECK_THROWS_WITH_AS(root.dataset("x").read(std::span(wide)), doctest::Contains("float32"), core::StorageError);
    CHECK_THROWS_AS(root.dataset("x").read(std::span(narrow)), core::StorageError);
    CHECK_THROWS_WITH_AS(root.dataset("y"), doctest::Contains("errors.h5:/y"), core::StorageError);
  }
  std::filesystem::resize_file(path, 6000);
  CHECK_THROWS_WITH_AS(hdf5::File(path, hdf5::Access::read), doctest::Contains("truncated"), core::StorageError);
}

TEST_CASE("hdf5: a disk that fills up is reported, and nothing stays open") {
  const testing::TemporaryDirectory directory;
  const auto path = own(directory, "full.h5");
  const auto fill = [&](std::size_t count) {
    const std::vector<float> values = numbers(count);
    hdf5::File file(path, hdf5::Access::create);
    hdf5::Dataset dataset =
        file.root().create_dataset("x", comm::DType::f32, std::vector<std::int64_t>{std::ssize(values)});
    dataset.write(std::span(values));
    dataset.close();
    file.close();
  };
  for (rlim_t limit = 0; limit < 8'000; limit += 111) {
    const testing::FullDisk full(limit);
    CHECK_THROWS_AS(fill(2'000), core::StorageError);
  }
  {
    const testing::FullDisk full(1'000'000);
    CHECK_THROWS_WITH_AS(fill(2'000'000), doctest::Contains("cannot write the file: File too large"),
                         core::StorageError);
  }
  CHECK(hdf5::open_objects() == 0);
  fill(2'000);
}

TEST_CASE("hdf5: several threads") {
  const testing::TemporaryDirectory directory;
  const std::vector<float> values = numbers(1000);
  std::vector<std::thread> threads;
  std::vector<int> good(4, 0);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const auto path = own(directory, ("thread" + std::to_string(t)).c_str());
      for (int round = 0; round < 10; ++round) {
        hdf5::File file(path, hdf5::Access::create);
        hdf5::Dataset dataset = file.root().create_dataset("x", comm::DType::f32, std::vector<std::int64_t>{1000});
        dataset.write(std::span(values));
        dataset.close();
        std::vector<float> read(1000);
        file.root().dataset("x").read(std::span(read));
        good[static_cast<std::size_t>(t)] += read == values ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const int count : good) CHECK(count == 10);
}
