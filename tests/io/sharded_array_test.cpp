#include "io/sharded_array.hpp"

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#include <ATen/ATen.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "full_disk.hpp"
#include "io/hdf5.hpp"
#include "plain_file.hpp"
#include "testing.hpp"

using namespace allosaur;
namespace fs = std::filesystem;

namespace {

/// Rows that each rank holds of the example: uneven, and none on the last of several ranks.
std::int64_t example_rows(int rank) {
  return testing::world().size() > 1 && rank == testing::world().size() - 1 ? 0 : 5 + 3 * rank;
}

std::int64_t example_total() {
  std::int64_t total = 0;
  for (int rank = 0; rank < testing::world().size(); ++rank) total += example_rows(rank);
  return total;
}

/// Rows [first, first + count) of the joined example array.
at::Tensor example(std::int64_t first, std::int64_t count, double offset) {
  return at::arange(first * 6, (first + count) * 6, at::kFloat).view({count, 2, 3}) + offset;
}

std::vector<std::string> example_keys(std::int64_t first, std::int64_t count) {
  std::vector<std::string> keys;
  for (std::int64_t i = first; i < first + count; ++i)
    keys.push_back("folder/" + std::string(static_cast<std::size_t>(i), 'k') + ".jpg");
  return keys;
}

/// Collective. Writes the example set with `offset` added to its values.
void write_example(const fs::path& index, double offset = 0) {
  comm::Communicator& world = testing::world();
  const std::int64_t rows = example_rows(world.rank()), first = world.exclusive_scan(rows);
  io::ShardedWriter writer(world, index);
  writer.write("group/values", example(first, rows, offset));
  writer.write("labels", at::arange(first, first + rows, at::kLong));
  writer.write("half", example(first, rows, offset).to(at::kBFloat16));
  writer.write("nothing", at::empty({0, 4}));
  writer.write_strings("keys", example_keys(first, rows));
  writer.set_attribute("model", "vit_tiny");
  writer.set_attribute("iteration", 1234);
  writer.publish();
}

/// Local. Reads the whole set and compares it.
bool example_is_whole(const fs::path& index, double offset = 0) {
  const io::ShardedReader reader(index);
  const std::int64_t total = example_total();
  return at::equal(reader.read("group/values"), example(0, total, offset)) &&
         at::equal(reader.read("labels"), at::arange(total, at::kLong)) &&
         at::equal(reader.read("half"), example(0, total, offset).to(at::kBFloat16)) &&
         reader.read("nothing").sizes() == at::IntArrayRef({0, 4}) &&
         reader.read_strings("keys") == example_keys(0, total) && reader.text_attribute("model") == "vit_tiny" &&
         reader.integer_attribute("iteration") == 1234;
}

std::vector<std::string> files_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

bool has_command(const char* command) {
  return std::system((std::string(command) + " >/dev/null 2>&1").c_str()) == 0;
}

}  // namespace

TEST_CASE("sharded array: what ranks write is read back, whole and in parts") {
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5";
  write_example(index);
  CHECK(example_is_whole(index));
  const io::ShardedReader reader(index);
  const std::int64_t total = example_total();
  CHECK(reader.names() == std::vector<std::string>{"group/values", "labels", "half", "nothing", "keys"});
  CHECK(reader.shape("group/values") == std::vector<std::int64_t>{total, 2, 3});
  CHECK(reader.shape("keys") == std::vector<std::int64_t>{total});
  for (std::int64_t first = 0; first <= total; ++first) {
    for (std::int64_t count = 0; count <= total - first; ++count) {
      CHECK(at::equal(reader.read("group/values", first, count), example(first, count, 0)));
      CHECK(at::equal(io::ShardedReader(index).read("labels", first, count),
                      at::arange(first, first + count, at::kLong)));
    }
  }
  CHECK_THROWS_AS(reader.read("labels", 1, total), std::out_of_range);
  CHECK_THROWS_WITH_AS(reader.read("none"), doctest::Contains("holds no array 'none'"), core::StorageError);
  CHECK_THROWS_AS(reader.read("keys"), core::StorageError);
  CHECK_THROWS_AS(reader.read_strings("labels"), core::StorageError);
  CHECK_THROWS_AS(reader.text_attribute("iteration"), core::StorageError);
}

TEST_CASE("sharded array: pieces of a large slice") {
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "large.h5";
  comm::Communicator& world = testing::world();
  const std::int64_t rows = 20'000;  // of 1,200 bytes: several pieces a shard
  const at::Tensor all = at::arange(rows * 300 * world.size(), at::kInt).view({-1, 300});
  io::ShardedWriter writer(world, index);
  writer.write("x", all.narrow(0, rows * world.rank(), rows));
  writer.publish();
  CHECK(at::equal(io::ShardedReader(index).read("x"), all));
  const io::ShardedReader reader(index);
  for (const bool verified_before : {false, true}) {
    CAPTURE(verified_before);
    CHECK(at::equal(reader.read("x", 3'000, 4'321), all.narrow(0, 3'000, 4'321)));
  }
}

TEST_CASE("sharded array: a set written by several ranks is read by one") {
  ALLOSAUR_NEEDS_RANKS(2);
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5", copy = directory.path() / "copy.h5";
  write_example(index);
  const auto alone = testing::world().split(testing::world().rank(), 0);
  if (testing::world().rank() == 1) {
    const io::ShardedReader reader(index);
    io::ShardedWriter writer(*alone, copy);
    writer.write("labels", reader.read("labels"));
    writer.publish();
  }
  testing::world().barrier();
  CHECK(at::equal(io::ShardedReader(copy).read("labels"), at::arange(example_total(), at::kLong)));
}

TEST_CASE("sharded array: writing anew keeps the old one until the new one is whole") {
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5";
  comm::Communicator& world = testing::world();
  write_example(index, 1);
  const std::vector<std::string> first_files = files_in(directory.path());
  CHECK(std::ssize(first_files) == world.size() + 1);
  world.barrier();

  {
    io::ShardedWriter writer(world, index);
    writer.write("labels", at::zeros({1}));
    CHECK(example_is_whole(index, 1));
    world.barrier();
  }  // given up
  world.barrier();
  CHECK(files_in(directory.path()) == first_files);
  world.barrier();

  if (world.rank() == 0) testing::overwrite(directory.path() / "set.7.00003.h5.tmp", "left by a killed run");
  world.barrier();
  write_example(index, 2);
  CHECK(example_is_whole(index, 2));
  world.barrier();
  const std::vector<std::string> second_files = files_in(directory.path());
  CHECK(second_files.size() == first_files.size());
  CHECK(second_files != first_files);
  world.barrier();
}

TEST_CASE("sharded array: a disk that is full on one rank fails everywhere and leaves the old set") {
  comm::Communicator& world = testing::world();
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5";
  write_example(index, 3);
  const std::vector<std::string> files = files_in(directory.path());
  world.barrier();
  const auto write_large = [&](const fs::path& name) {
    io::ShardedWriter writer(world, name);
    writer.write("x", at::zeros({50'000}));
    writer.write("y", at::zeros({50}));
    writer.publish();
  };
  for (int full_rank = 0; full_rank < world.size(); ++full_rank) {
    for (const rlim_t limit : {rlim_t{0}, rlim_t{1000}, rlim_t{100'000}}) {
      for (const char* name : {"set.h5", "other.h5"}) {
        const std::optional<testing::FullDisk> full =
            world.rank() == full_rank ? std::optional<testing::FullDisk>(std::in_place, limit) : std::nullopt;
        CHECK_THROWS_AS(write_large(directory.path() / name), core::Error);
        world.barrier();
      }
    }
  }
  {  // room for the shards, not for the index
    const std::optional<testing::FullDisk> full =
        world.rank() == 0 ? std::optional<testing::FullDisk>(std::in_place, rlim_t{100'000}) : std::nullopt;
    io::ShardedWriter writer(world, index);
    writer.write("y", at::zeros({50}));
    writer.set_attribute("page", std::string(200'000, 'p'));
    CHECK_THROWS_AS(writer.publish(), core::Error);
    world.barrier();
  }
  CHECK(files_in(directory.path()) == files);
  CHECK(example_is_whole(index, 3));
  world.barrier();
  write_large(index);
  CHECK(io::ShardedReader(index).shape("x")[0] == 50'000 * world.size());
}

TEST_CASE("sharded array: mistakes of one rank are everyone's") {
  comm::Communicator& world = testing::world();
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5";
  {
    io::ShardedWriter writer(world, index);
    writer.write("x", world.rank() == 0 ? at::zeros({4, 4}).t() : at::zeros({4, 4}));  // not contiguous
    CHECK_THROWS(writer.publish());
    CHECK_THROWS_AS(writer.write("y", at::zeros({1})), std::logic_error);
    CHECK_THROWS(writer.publish());
  }
  if (world.size() > 1) {
    io::ShardedWriter writer(world, index);
    writer.write("x", world.rank() == 0 ? at::zeros({4, 4}) : at::zeros({4, 5}));
    CHECK_THROWS(writer.publish());
  }
  CHECK_THROWS(io::ShardedWriter(world, directory.path() / "none" / "set.h5"));
  world.barrier();
  CHECK(files_in(directory.path()).empty());
}

TEST_CASE("sharded array: damaged, foreign and missing files are named") {
  comm::Communicator& world = testing::world();
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5", other = directory.path() / "other.h5";
  write_example(index);
  write_example(other, 5);
  if (world.rank() != 0) return;  // nothing collective from here to the end of the case
  const fs::path shard = directory.path() / "set.1.00000.h5";
  const std::string index_content = core::read_text(index), shard_content = core::read_text(shard);
  const auto use = [&] {
    const bool whole = example_is_whole(index);  // a CHECK would catch what is thrown
    CHECK(whole);
  };
  const auto damage = [&](const fs::path& file, const std::string& content) {
    testing::overwrite(file, content);
    const std::string whole = file == index ? index_content : shard_content;
    CHECK_THROWS_WITH_AS(use(), doctest::Contains(file.c_str()), core::StorageError);
    testing::overwrite(file, whole);
  };
  use();
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{100}, shard_content.size() / 2, shard_content.size() - 1}) {
    damage(shard, shard_content.substr(0, length));
  }
  for (const std::size_t length : {std::size_t{0}, std::size_t{100}, index_content.size() / 2}) {
    damage(index, index_content.substr(0, length));
  }
  damage(shard, core::read_text(directory.path() / "other.1.00000.h5"));  // same size, other content
  damage(shard, shard_content + "x");
  damage(index, shard_content);
  damage(index, "no HDF5 file");
  fs::remove(shard);
  CHECK_THROWS_WITH_AS(io::ShardedReader{index}, doctest::Contains("set.1.00000.h5"), core::StorageError);
  testing::overwrite(shard, shard_content);

  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    core::Random random(seed, core::Purpose::demo, 2);
    const bool of_index = seed % 2 == 0;
    std::string content = of_index ? index_content : shard_content;
    auto& byte = content[static_cast<std::size_t>(random.below(std::ssize(content)))];
    byte = static_cast<char>(byte ^ (1 << random.below(8)));
    testing::overwrite(of_index ? index : shard, content);
    std::string error;
    bool whole = false;
    try {
      whole = example_is_whole(index);  // the bit was in nothing that is used
    } catch (const core::StorageError& caught) {
      error = caught.what();
    }
    CHECK((whole || error.find((of_index ? index : shard).string()) != std::string::npos));
    testing::overwrite(index, index_content);
    testing::overwrite(shard, shard_content);
  }
  use();
}

TEST_CASE("sharded array: other people's tools see joined arrays") {
  const testing::TemporaryDirectory directory;
  const fs::path index = directory.path() / "set.h5";
  write_example(index);
  if (testing::world().rank() != 0) return;
  const std::string total = std::to_string(example_total());
  if (has_command("h5ls -V")) {
    CHECK(has_command(("h5ls " + index.string() + " | grep 'labels  *Dataset {" + total + "}'").c_str()));
    CHECK(has_command(
        ("h5dump -d /labels " + index.string() + " | grep -w " + std::to_string(example_total() - 1)).c_str()));
  } else {
    MESSAGE("skipped: h5ls is not installed");
  }
  std::string python = "python3";
  if (!has_command("python3 -c 'import h5py'")) python = "/usr/bin/python3";  // the package's own, beside another one
  if (has_command((python + " -c 'import h5py'").c_str())) {
    testing::overwrite(
        directory.path() / "check.py",
        "import h5py, sys\n"
        "f, n = h5py.File(sys.argv[1], 'r'), int(sys.argv[2])\n"
        "assert (f['group/values'][()].ravel() == range(6 * n)).all()\n"
        "assert (f['labels'][()] == range(n)).all() and f['half'].shape == (n, 2, 3)\n"
        "assert [k.decode() for k in f['keys'][()]] == ['folder/' + 'k' * i + '.jpg' for i in range(n)]\n"
        "assert f.attrs['iteration'] == 1234 and f.attrs['model'] in (b'vit_tiny', 'vit_tiny')\n");
    CHECK(std::system(("cd / && " + python + " " + (directory.path() / "check.py").string() + " " + index.string() +
                       " " + total)
                          .c_str()) == 0);
  } else {
    MESSAGE("skipped: python3 has no h5py");
  }
}
