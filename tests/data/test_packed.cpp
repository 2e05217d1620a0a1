#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "data/packed.hpp"
#include "data/packed_writer.hpp"
#include "data/sources.hpp"
#include "io/hdf5.hpp"
#include "io/sharded_array.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBroken = "cat/05broken.jpg";  // row 6
const data::PackConfig kThreeAPart{.threads = 2, .part_bytes = 3'000'000, .part_images = 3, .wanted_parts = 1};

/// Collective. A labelled folder `root`/source of 10 + 3 images and a broken one.
void write_source(const fs::path& root) {
  testing::on_first_rank([&] {
    testing::write_pictures(root / "source/cat", 10);
    testing::write_pictures(root / "source/dog", 3);
    std::vector<std::byte> bytes = testing::read_file(root / "source/cat/05.jpg");
    bytes[0] = std::byte{0};
    testing::write_file(root / "source" / kBroken, bytes);
    fs::create_directories(root / "packed");
  });
}

/// Collective. Packs that source, each rank a share of it, with provenance.
data::PackedResult pack_source(const fs::path& root, const data::PackConfig& config, const data::PackHooks& hooks = {},
                               float similarity = 0.1F) {
  comm::Communicator& world = testing::world();
  const auto source = data::open_dataset(world, root / "source", data::Labels::required);
  std::vector<std::int64_t> mine;
  data::PackedColumns columns;
  columns.strings.push_back({"origin", {}});
  for (std::int64_t i = world.rank() * source->size() / world.size();
       i < (world.rank() + 1) * source->size() / world.size(); ++i) {
    mine.push_back(i);
    columns.strings[0].second.push_back("from " + source->key(i));
  }
  columns.numbers.push_back({"similarity", at::tensor(mine, at::kLong).to(at::kFloat) * similarity});
  return data::write_packed(world, *source, mine, columns, root / "packed" / data::kPackedIndexName, config, hooks);
}

data::PackedResult pack(const fs::path& root) {
  write_source(root);
  return pack_source(root, {.threads = 2});
}

fs::path part_file(const fs::path& root, int number) {
  return data::packed_part_file(root / "packed" / data::kPackedIndexName, number);
}

/// Inode and time of a file, which differ where it was written anew.
using FileMark = std::array<std::int64_t, 3>;

/// Collective. Those of the part files.
std::vector<FileMark> parts_of(const fs::path& root) {
  testing::world().barrier();
  std::vector<FileMark> marks;
  struct stat status {};
  while (::stat(part_file(root, static_cast<int>(marks.size())).c_str(), &status) == 0) {
    marks.push_back({static_cast<std::int64_t>(status.st_ino), status.st_mtim.tv_sec, status.st_mtim.tv_nsec});
  }
  testing::world().barrier();
  return marks;
}

/// Collective. Does `change` on rank 0, packs again, and returns the parts that were written anew.
template <class Change>
std::set<int> written_anew(const fs::path& root, Change&& change, float similarity = 0.1F) {
  const std::vector<FileMark> before = parts_of(root);
  testing::on_first_rank(change);
  const data::PackedResult result = pack_source(root, kThreeAPart, {}, similarity);
  const std::vector<FileMark> after = parts_of(root);
  CHECK(result.complete);
  std::set<int> anew;
  for (std::size_t i = 0; i < after.size(); ++i) {
    if (i >= before.size() || before[i] != after[i]) anew.insert(static_cast<int>(i));
  }
  CHECK(result.taken_over == result.parts - std::ssize(anew));
  return anew;
}

/// Collective. Whether the packed images are those of the source, in its order, without the broken one.
void check_packed(const fs::path& root) {
  comm::Communicator& world = testing::world();
  const auto source = data::open_dataset(world, root / "source", data::Labels::required);
  const auto packed = data::open_dataset(world, root / "packed", data::Labels::required);
  const io::ShardedReader table(root / "packed" / data::kPackedIndexName);
  const std::vector<std::string> origins = table.read_strings("origin");
  REQUIRE(packed->size() == 13);
  CHECK(packed->class_names() == std::vector<std::string>{"cat", "dog"});
  std::int64_t row = 0;
  for (std::int64_t i = 0; i < source->size(); ++i) {
    if (source->key(i) == kBroken) continue;
    const data::Sample expected = source->get(i), sample = packed->get(row);
    CHECK((sample.bytes == expected.bytes));
    CHECK(sample.key == expected.key);
    CHECK(sample.label == expected.label);
    CHECK(packed->length(row) == source->length(i));
    CHECK(origins.at(static_cast<std::size_t>(row)) == "from " + source->key(i));
    CHECK(table.read("similarity")[row].item<float>() == doctest::Approx(0.1 * static_cast<double>(i)));
    ++row;
  }
}

/// Collective. Whether the images lie in these parts.
void check_parts(const fs::path& root, std::span<const std::int64_t> part_of_source_row) {
  const at::Tensor shard = io::ShardedReader(root / "packed" / data::kPackedIndexName).read("shard");
  for (std::int64_t row = 0; row < shard.size(0); ++row) {
    const auto source_row = static_cast<std::size_t>(row < 6 ? row : row + 1);
    CHECK(shard[row].item<std::int64_t>() == part_of_source_row[source_row]);
  }
}

}  // namespace

TEST_CASE("packed images are those of the source, without the broken one") {
  const testing::TemporaryDirectory directory;
  const data::PackedResult result = pack(directory.path());
  CHECK(result.complete);
  CHECK(result.images == 13);
  CHECK(result.parts == 1);
  CHECK(result.taken_over == 0);
  check_packed(directory.path());
  const fs::path index = directory.path() / "packed" / data::kPackedIndexName;
  CHECK(data::open_dataset(testing::world(), index, data::Labels::ignored)->label(0) == -1);
}

TEST_CASE("parts do not depend on ranks: by images, or by bytes") {
  const testing::TemporaryDirectory directory;
  const fs::path& root = directory.path();
  write_source(root);
  CHECK(pack_source(root, kThreeAPart).parts == 5);
  check_packed(root);
  check_parts(root, std::vector<std::int64_t>{0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4});

  comm::Communicator& world = testing::world();
  const auto source = data::open_dataset(world, root / "source", data::Labels::required);
  const std::int64_t part_bytes = 5 * source->length(0) / 2;
  std::vector<std::int64_t> part_of_row;
  for (std::int64_t i = 0, bytes = 0, part = 0; i < source->size(); ++i) {
    part_of_row.push_back(part);
    const std::int64_t before = bytes;
    bytes += source->length(i);
    if (bytes / part_bytes > before / part_bytes) ++part;
  }
  const data::PackConfig by_bytes{.threads = 1, .part_bytes = part_bytes, .part_images = 1000, .wanted_parts = 1};
  const data::PackedResult result = pack_source(root, by_bytes);
  CHECK(result.parts == part_of_row.back() + 1);
  CHECK(result.parts > 4);
  check_packed(root);
  check_parts(root, part_of_row);

  std::vector<std::int64_t> all_on_rank_0;
  for (std::int64_t i = 0; world.rank() == 0 && i < source->size(); ++i) all_on_rank_0.push_back(i);
  const data::PackPlan plan = data::plan_packed(world, *source, all_on_rank_0, by_bytes);
  CHECK(plan.parts == result.parts);
  CHECK(plan.images == 14);
  CHECK(plan.bytes > result.bytes);
  // Halved until they hold two images each: to have four of them, or because six times is all.
  for (const auto& [images, wanted] : {std::pair{16, 4}, std::pair{128, 1000}}) {
    const data::PackConfig large{
        .threads = 1, .part_bytes = images * 1'000'000, .part_images = images, .wanted_parts = wanted};
    CHECK(data::plan_packed(world, *source, all_on_rank_0, large).parts == 7);
  }
}

TEST_CASE("a selection without images is packed") {
  const testing::TemporaryDirectory directory;
  write_source(directory.path());
  comm::Communicator& world = testing::world();
  const auto source = data::open_dataset(world, directory.path() / "source", data::Labels::required);
  const fs::path index = directory.path() / "packed" / data::kPackedIndexName;
  const data::PackedColumns columns{.strings = {}, .numbers = {{"similarity", at::empty({0}, at::kFloat)}}};
  CHECK(data::write_packed(world, *source, {}, columns, index, {}).complete);
  CHECK(io::ShardedReader(index).shape("similarity") == std::vector<std::int64_t>{0});
}

TEST_CASE("packing stops on request and goes on with what is missing") {
  const testing::TemporaryDirectory directory;
  const fs::path &root = directory.path(), index = root / "packed" / data::kPackedIndexName;
  comm::Communicator& world = testing::world();
  write_source(root);

  // Rank 0 is asked at once and gives its part up; the others finish theirs.
  data::PackedResult result = pack_source(root, kThreeAPart, {.stop = [&] { return world.rank() == 0; }});
  CHECK(!result.complete);
  CHECK(result.parts == 5);
  CHECK(result.finished == world.size() - 1);
  CHECK(!fs::exists(part_file(root, 0)));
  CHECK(!fs::exists(part_file(root, 0).string() + ".tmp"));

  // Asked when one more part is written.
  std::int64_t earlier = -1, now = 0;
  const data::PackHooks hooks{.progress =
                                  [&](std::int64_t done, std::int64_t) {
                                    if (earlier < 0) earlier = done;
                                    now = done;
                                  },
                              .stop = [&] { return now > earlier; }};
  result = pack_source(root, kThreeAPart, hooks);
  CHECK(!result.complete);
  CHECK(result.taken_over == world.size() - 1);
  CHECK(result.finished > result.taken_over);
  const std::int64_t finished = result.finished;
  CHECK(!fs::exists(index));

  result = pack_source(root, kThreeAPart);
  CHECK(result.complete);
  CHECK(result.taken_over == finished);
  check_packed(root);
}

TEST_CASE("a part whose images, columns or file have changed is written anew") {
  const testing::TemporaryDirectory directory;
  const fs::path& root = directory.path();
  write_source(root);
  pack_source(root, kThreeAPart);
  CHECK(written_anew(root, [] {}).empty());
  CHECK(written_anew(root, [&] { testing::write_pictures(root / "source/cat", 4); }).empty());  // the same files

  const fs::path changed = root / "source/cat/04.jpg";
  CHECK(written_anew(root, [&] {
          fs::copy_file(root / "source/cat/08.jpg", changed, fs::copy_options::overwrite_existing);
        }) == std::set{1});
  check_packed(root);
  CHECK(written_anew(root, [&] { fs::resize_file(part_file(root, 3), fs::file_size(part_file(root, 3)) - 10); }) ==
        std::set{3});
  CHECK(written_anew(root, [&] { fs::remove(part_file(root, 0)); }).contains(0));
  CHECK(written_anew(root, [&] {
          std::vector<std::byte> bytes = testing::read_file(part_file(root, 2));
          const std::string_view key = "from cat/07.jpg";
          const auto at = std::search(bytes.begin(), bytes.end(), key.begin(), key.end(),
                                      [](std::byte a, char b) { return a == std::byte(b); });
          if (at != bytes.end()) *at ^= std::byte{1};
          testing::write_file(part_file(root, 2), bytes);
        }) == std::set{2});
  check_packed(root);
  CHECK(written_anew(root, [] {}, 0.2F) == std::set{0, 1, 2, 3, 4});

  // A broken image is tried again.
  CHECK(written_anew(
            root,
            [&] {
              fs::copy_file(root / "source/cat/05.jpg", root / "source" / kBroken,
                            fs::copy_options::overwrite_existing);
            },
            0.2F) == std::set{2});
  CHECK(data::open_dataset(testing::world(), root / "packed", data::Labels::required)->size() == 14);
}

TEST_CASE("parts that the set does not have go before the index appears") {
  const testing::TemporaryDirectory directory;
  const fs::path& root = directory.path();
  write_source(root);
  CHECK(pack_source(root, {.threads = 1, .part_bytes = 1'000'000, .part_images = 1, .wanted_parts = 1}).parts == 14);
  const fs::path half = part_file(root, 2).string() + ".tmp", other = root / "packed/images-bytes.txt";
  testing::on_first_rank([&] {
    for (const fs::path& file : {half, other}) testing::write_file(file, {});
  });
  const data::PackedResult result = pack_source(root, kThreeAPart);
  CHECK(result.taken_over == 0);
  CHECK(parts_of(root).size() == 5);
  CHECK(!fs::exists(part_file(root, 13)));
  CHECK(!fs::exists(half));
  CHECK(fs::exists(other));
  check_packed(root);
}

TEST_CASE("broken images are judged before the index appears, those of parts taken over too") {
  const testing::TemporaryDirectory directory;
  const fs::path &root = directory.path(), index = root / "packed" / data::kPackedIndexName;
  comm::Communicator& world = testing::world();
  write_source(root);
  for (const bool refuse : {true, false, false}) {  // the last has an earlier index to remove
    std::vector<data::Rejected> broken;
    data::PackHooks hooks{.accept = [&](const std::vector<data::Rejected>& shown) {
      broken = shown;
      CHECK(!fs::exists(index));
      if (refuse) throw std::runtime_error("too many");
    }};
    std::optional<data::PackedResult> result;
    try {
      result = pack_source(root, kThreeAPart, hooks);
    } catch (const std::runtime_error&) {
    }
    CHECK(result.has_value() != refuse);
    CHECK(fs::exists(index) != refuse);
    if (result) CHECK(result->taken_over == 5);
    CHECK(world.sum(std::ssize(broken)) == 1);
    if (!broken.empty()) {
      CHECK(broken[0].key == kBroken);
      CHECK(broken[0].reason.size() > 10);
    }
  }
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
  } catch (const core::InputError& error) {
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

TEST_CASE("places outside of a part are listed, and columns of a wrong type or length are refused") {
  const testing::TemporaryDirectory directory;
  pack(directory.path());
  comm::Communicator& world = testing::world();
  const fs::path index = directory.path() / "packed" / data::kPackedIndexName;
  /// The error of opening after `name` has been replaced in the table.
  const auto reopened = [&](const std::string& name, const std::function<at::Tensor(at::Tensor)>& change) {
    std::vector<std::pair<std::string, at::Tensor>> numbers;
    std::vector<std::pair<std::string, std::vector<std::string>>> strings;
    {
      const io::ShardedReader table(index);
      for (const std::string& column : table.names()) {
        if (column == "key" || column == "class_name" || column == "origin") {
          strings.emplace_back(column, table.read_strings(column));
        } else {
          numbers.emplace_back(column, table.read(column));
        }
      }
    }
    world.barrier();
    io::ShardedWriter writer(world, index);
    const bool mine = world.rank() == 0;
    for (auto& [column, values] : numbers) {
      if (column == name) values = change(values);
      writer.write(column, mine ? values : values.slice(0, 0, 0));
    }
    for (const auto& [column, values] : strings)
      writer.write_strings(column, mine ? values : std::vector<std::string>());
    writer.publish();
    std::vector<std::string> problems;
    try {
      for (const auto& problem :
           data::open_dataset(world, directory.path() / "packed", data::Labels::required)->problems())
        problems.push_back(problem.key);
    } catch (const core::Error& error) {
      problems.emplace_back(error.what());
    }
    return problems;
  };
  const auto changed = [](std::int64_t row, std::int64_t value) {
    return [=](const at::Tensor& column) {
      at::Tensor copy = column.clone();
      copy[row] = value;
      return copy;
    };
  };
  const auto contains = [](const std::vector<std::string>& texts, const char* part) {
    return texts.size() == 1 && texts[0].find(part) != std::string::npos;
  };
  CHECK(reopened("begin", changed(2, -1)) == std::vector<std::string>{"cat/02.jpg"});
  CHECK(reopened("length", changed(3, 1LL << 60)) == std::vector<std::string>{"cat/02.jpg", "cat/03.jpg"});
  CHECK(reopened("shard", changed(4, 99)).size() == 3);
  CHECK(reopened("label", changed(5, 17)).size() == 4);  // an image without a class
  CHECK(
      contains(reopened("hash", [](const at::Tensor& column) { return column.to(at::kDouble); }), "its column `hash`"));
}

TEST_CASE("mutated files of packed images give the same images, or an error of ours") {
  const testing::TemporaryDirectory directory;
  pack(directory.path());
  const fs::path packed = directory.path() / "packed";
  const fs::path copy = directory.path() / fmt::format("copy-{}", testing::world().rank());
  std::map<std::string, std::vector<std::byte>> images;
  const auto read = [&](const fs::path& folder, auto&& take) {
    data::IndexRows rows;
    const auto scanner = data::scan_packed(folder / data::kPackedIndexName);
    const std::vector<std::string> units = scanner->units(1, rows);
    scanner->scan(units.at(0), 0, rows);
    const auto set =
        data::indexed_images(std::make_shared<const data::Index>(rows), folder, rows.containers, /*labelled=*/false);
    for (std::int64_t row = 0; row < set->size(); ++row) take(set->get(row));
  };
  read(packed, [&](const data::Sample& sample) { images[sample.key] = sample.bytes; });
  CHECK(images.size() == 13);
  fs::copy(packed, copy);
  int refused = 0, unharmed = 0;
  for (const auto& entry : fs::directory_iterator(packed)) {
    if (entry.path().extension() != ".h5") continue;
    const std::vector<std::byte> whole = testing::read_file(entry.path());
    const fs::path mutant = copy / entry.path().filename();
    for (std::uint64_t seed = 0; seed < 150; ++seed) {
      CAPTURE(mutant.string());
      CAPTURE(seed);
      core::Random random(seed, core::Purpose::demo, 0);
      std::vector<std::byte> bytes = whole;
      for (std::int64_t flips = 1 + random.below(3); flips > 0; --flips) {
        const std::int64_t end =
            random.chance(0.5) ? std::ssize(bytes) : std::min<std::int64_t>(std::ssize(bytes), 2048);
        bytes[static_cast<std::size_t>(random.below(end))] ^= static_cast<std::byte>(1 << random.below(8));
      }
      testing::write_file(mutant, bytes);
      try {
        read(copy, [&](const data::Sample& sample) {
          const auto found = images.find(sample.key);
          if (found != images.end()) CHECK(std::ranges::equal(sample.bytes, found->second));
        });
        ++unharmed;
      } catch (const core::Error& error) {
        CHECK(std::string(error.what()).size() > 20);
        ++refused;
      }
    }
    testing::write_file(mutant, whole);
  }
  CHECK(refused > 20);
  CHECK(unharmed > 20);
}

TEST_CASE("image bytes of a wrong type, length or layout are refused") {
  const testing::TemporaryDirectory directory;
  pack(directory.path());
  const auto error_with = [&](const auto& make) {
    testing::on_first_rank([&] {
      fs::remove(part_file(directory.path(), 0));
      io::hdf5::File file(part_file(directory.path(), 0), io::hdf5::Access::create);
      io::hdf5::Group root = file.root();
      make(root);
      root = {};
      file.close();
    });
    try {
      data::open_dataset(testing::world(), directory.path() / "packed", data::Labels::ignored);
    } catch (const core::Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const std::int64_t size = [&] {
    const io::hdf5::File file(part_file(directory.path(), 0), io::hdf5::Access::read);
    return file.root().dataset("bytes").shape().at(0);
  }();
  testing::world().barrier();
  const auto bytes_of = [](comm::DType type, std::int64_t length) {
    return [=](io::hdf5::Group& root) {
      const std::vector<std::int32_t> zeros(static_cast<std::size_t>(length));
      const std::int64_t shape[] = {length};
      io::hdf5::Dataset bytes = root.create_dataset("bytes", type, shape);
      bytes.write({const_cast<std::int32_t*>(zeros.data()), length, type});
      bytes.close();
    };
  };
  const auto names = [](const std::string& error) {
    return error.find("images-bytes.00000.h5") != std::string::npos || error.find("`bytes`") != std::string::npos;
  };
  const auto in_pieces = [&](io::hdf5::Group& root) {
    const std::int64_t shape[] = {size};
    const std::vector<io::hdf5::VirtualSlice> elsewhere{{"other.h5", "bytes", size}};
    root.create_virtual_dataset("bytes", comm::DType::u8, shape, elsewhere);
  };
  CHECK(error_with(bytes_of(comm::DType::u8, size)) == "");
  CHECK(names(error_with(bytes_of(comm::DType::u8, size - 1))));
  CHECK(names(error_with(bytes_of(comm::DType::i32, size))));
  CHECK(names(error_with(in_pieces)));
  CHECK(names(error_with([](io::hdf5::Group&) {})));
}

}  // namespace allosaur
