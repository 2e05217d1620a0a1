/// The loader on a folder of image files held in memory, on one thread and on two, in turn.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <vector>

#include <fmt/format.h>

#include "bench/bench.hpp"
#include "core/files.hpp"
#include "data/loader.hpp"

namespace {

using namespace allosaur;
namespace fs = std::filesystem;

class Files final : public data::Dataset {
 public:
  explicit Files(const fs::path& folder) {
    for (const auto& entry : fs::directory_iterator(folder)) names_.push_back(entry.path().string());
    std::ranges::sort(names_);
    for (const std::string& name : names_) {
      const std::string text = core::read_text(name);
      const auto* begin = reinterpret_cast<const std::byte*>(text.data());
      files_.emplace_back(begin, begin + text.size());
    }
  }
  std::int64_t size() const override { return std::ssize(files_); }
  data::Sample get(std::int64_t index) const override {
    return {files_.at(static_cast<std::size_t>(index)), -1, key(index)};
  }
  std::int64_t label(std::int64_t) const override { return -1; }
  std::string key(std::int64_t index) const override { return names_.at(static_cast<std::size_t>(index)); }
  const std::vector<std::string>& class_names() const override { return none_; }

 private:
  std::vector<std::string> names_, none_;
  std::vector<std::vector<std::byte>> files_;
};

/// Images/s over `batches` batches, after the memory of batches has been used once.
double rate(const std::shared_ptr<const data::Dataset>& files, int workers, int batches) {
  data::LoaderConfig config;
  config.augment.local_crops_size = 98;
  config.mask.patches_per_side = 16;
  config.global_batch = config.group = 32;
  config.workers = workers;
  data::Loader loader(files, config, 0, 1, 0);
  for (int i = 0; i <= config.prefetch; ++i) loader.next();
  const double seconds = bench::seconds([&] {
    for (int i = 0; i < batches; ++i) loader.next();
  });
  return static_cast<double>(batches) * 32 / seconds;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    fmt::print(stderr, "usage: bench_loader FOLDER [ROUNDS [BATCHES]]\n");
    return 2;
  }
  const auto files = std::make_shared<Files>(arguments[1]);
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 7, batches = count > 3 ? std::atoi(arguments[3]) : 40;
  std::vector<double> one, two, ratios;
  for (int round = 0; round < rounds; ++round) {
    one.push_back(rate(files, 1, batches));
    two.push_back(rate(files, 2, batches));
    ratios.push_back(two.back() / one.back());
  }
  fmt::print("1 thread {:.1f} images/s, 2 threads {:.1f}: {:.2f} times (medians of {} runs of {} images)\n",
             bench::median(one), bench::median(two), bench::median(ratios), rounds, batches * 32);
}
