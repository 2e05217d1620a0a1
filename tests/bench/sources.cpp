/// Sources of small images: time to open, memory of the index, random reads; and an index of very many samples.
#include <malloc.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "bench/bench.hpp"
#include "comm/environment.hpp"
#include "core/random.hpp"
#include "data/index.hpp"
#include "data/loader.hpp"
#include "data/sources.hpp"

namespace {

using namespace allosaur;
namespace fs = std::filesystem;

/// Memory that is not shared with other ranks of the node, in MiB: a mapped index counts once a node.
double private_mib() {
  return bench::status_mib("RssAnon");
}

io::Image noise(std::uint64_t number, int side) {
  core::Random random(1, core::Purpose::demo, number);
  io::Image image{side, side, 3, std::vector<std::uint8_t>(static_cast<std::size_t>(side * side * 3))};
  for (std::uint8_t& value : image.pixels) value = static_cast<std::uint8_t>(100 + random.below(32));
  return image;
}

/// `count` JPEG files of 32 x 32 pixels, a thousand a folder.
void make(const fs::path& folder, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const fs::path place = folder / fmt::format("{:04}", i / 1000);
    if (i % 1000 == 0) fs::create_directories(place);
    const std::vector<std::byte> jpeg = io::encode_jpeg(noise(static_cast<std::uint64_t>(i), 32), 90);
    std::ofstream(place / fmt::format("image_{:08}.jpg", i), std::ios::binary)
        .write(reinterpret_cast<const char*>(jpeg.data()), std::ssize(jpeg));
  }
}

double reads_per_second(const data::Dataset& images, std::uint64_t round, int count) {
  core::Random random(2, core::Purpose::demo, round);
  std::size_t bytes = 0;
  const double seconds = bench::seconds([&] {
    for (int i = 0; i < count; ++i) bytes += images.get(random.below(images.size())).bytes.size();
  });
  return bytes > 0 ? count / seconds : 0;
}

void compare(comm::Communicator& world, const fs::path& cache, const std::vector<fs::path>& sources) {
  constexpr int kRounds = 7, kReads = 20'000;
  std::vector<std::shared_ptr<const data::Dataset>> opened;
  for (const fs::path& source : sources) {
    const double first =
        bench::seconds([&] { data::open_dataset(world, source, data::Labels::ignored, {cache, {}, {}}); });
    ::malloc_trim(0);
    const double before = private_mib();
    const double again = bench::seconds(
        [&] { opened.push_back(data::open_dataset(world, source, data::Labels::ignored, {cache, {}, {}})); });
    ::malloc_trim(0);
    fmt::print("{}: {} images; opened in {:.2f} s at first, {:.3f} s again; {:.1f} MiB of its own a million images\n",
               source.filename().string(), opened.back()->size(), first, again,
               (private_mib() - before) * 1e6 / static_cast<double>(opened.back()->size()));
  }
  std::vector<std::vector<double>> rates(sources.size());
  for (int round = 0; round <= kRounds; ++round) {
    for (std::size_t i = 0; i < sources.size(); ++i) {
      const double rate = reads_per_second(*opened[i], static_cast<std::uint64_t>(round), kReads);
      if (round > 0) rates[i].push_back(rate);  // the first is a warm-up
    }
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    fmt::print("{}: {:.0f} random reads/s on one thread (median of {} rounds of {}, in turn)\n",
               sources[i].filename().string(), bench::median(rates[i]), kRounds, kReads);
  }
}

constexpr int kShards = 10'000;

/// Rows of shards that hold nothing, but have stamps.
class SyntheticScanner final : public data::Scanner {
 public:
  SyntheticScanner(fs::path folder, std::int64_t rows) : folder_(std::move(folder)), rows_(rows) {}

  std::vector<std::string> units(int /*wanted*/, data::IndexRows& rows) override {
    for (int shard = 0; shard < kShards; ++shard)
      rows.containers.push_back((folder_ / fmt::format("shard-{:06}.tar", shard)).string());
    return rows.containers;
  }
  void scan(const std::string& unit, int number, data::IndexRows& rows) const override {
    rows.stamps.push_back(data::stamp_of(unit));
    for (std::int64_t row = rows_ * number / kShards; row < rows_ * (number + 1) / kShards; ++row) {
      rows.add(fmt::format("shard-{:06}.tar/{:09}.jpg", number, row), "",
               {number, row * 100'000, 100'000, static_cast<std::uint64_t>(row)});
    }
  }
  bool expensive() const override { return true; }

 private:
  fs::path folder_;
  std::int64_t rows_;
};

/// Any number of images, all of one file's bytes, under the keys of an index.
class Synthetic final : public data::Dataset {
 public:
  explicit Synthetic(std::shared_ptr<const data::Index> index)
      : index_(std::move(index)), bytes_(io::encode_jpeg(noise(0, 64), 90)) {}
  std::int64_t size() const override { return index_->size(); }
  data::Sample get(std::int64_t row) const override { return {bytes_, index_->label(row), key(row)}; }
  std::int64_t label(std::int64_t row) const override { return index_->label(row); }
  std::string key(std::int64_t row) const override { return std::string(index_->key(row)); }
  const std::vector<std::string>& class_names() const override { return index_->class_names(); }

 private:
  std::shared_ptr<const data::Index> index_;
  std::vector<std::byte> bytes_;
};

void synthetic(comm::Communicator& world, const fs::path& folder, std::int64_t rows) {
  const fs::path shards = fs::absolute(folder) / "shards", cache = folder / "cache";
  fs::create_directories(shards);
  SyntheticScanner scanner(shards, rows);
  data::IndexRows nothing;
  for (const std::string& shard : scanner.units(1, nothing)) {
    std::ofstream(shard).close();
    fs::last_write_time(shard, fs::file_time_type::clock::now() - std::chrono::hours(1));  // as it is long unchanged
  }
  const double made = bench::seconds([&] { data::open_index(world, shards, scanner, {cache, {}, {}}); });
  const fs::path file = fs::directory_iterator(cache)->path();
  ::malloc_trim(0);
  const double before = private_mib();
  std::shared_ptr<const Synthetic> images;
  const double open = bench::seconds(
      [&] { images = std::make_shared<Synthetic>(data::open_index(world, shards, scanner, {cache, {}, {}})); });
  fmt::print(
      "index of {} images in {} shards: {:.1f} bytes an image on disk, made in {:.1f} s, opened with its stamps "
      "checked in {:.4f} s\n",
      images->size(), kShards, static_cast<double>(fs::file_size(file)) / static_cast<double>(images->size()), made,
      open);
  data::LoaderConfig config;
  config.augment.global_crops_size = config.augment.local_crops_size = 32;
  config.augment.local_crops_number = 2;
  config.mask.patches_per_side = 2;
  config.global_batch = config.group = 64;
  for (const std::int64_t first : {std::int64_t{0}, std::int64_t{600'000}}) {
    std::unique_ptr<data::Loader> loader;
    const double batch = bench::seconds([&] {
      loader = std::make_unique<data::Loader>(images, config, 0, 1, first);
      loader->next();
    });
    fmt::print("batch {} after {:.3f} s; {:.1f} MiB of memory of its own\n", first, batch, private_mib() - before);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  comm::Environment environment(count, arguments);
  if (words.size() == 3 && words[0] == "make") {
    make(words[1], std::stol(words[2]));
  } else if (words.size() > 2 && words[0] == "compare") {
    compare(environment.world(), words[1], {words.begin() + 2, words.end()});
  } else if (words.size() == 3 && words[0] == "synthetic") {
    synthetic(environment.world(), words[1], std::stol(words[2]));
  } else {
    fmt::print(stderr, "usage: bench_sources make FOLDER IMAGES | compare CACHE SOURCE... | synthetic FOLDER IMAGES\n");
    return 2;
  }
}
