// One iteration of the production engine: a published ViT-S/16 with one head of 65,536 prototypes, 2 + 8 random crops
// an image, the images of an iteration in one group, on one rank. tests/bench/iteration runs it in turn with
// iteration_peer.py, which works alike: an unmeasured iteration, then one for each line of standard input, with a JSON
// object on standard output.
#include <cstdlib>
#include <iostream>
#include <string>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>

#include "bench/bench.hpp"
#include "comm/environment.hpp"
#include "core/random.hpp"
#include "train/step.hpp"

namespace {

using namespace allosaur;

constexpr std::int64_t kLocalCrops = 8;
constexpr std::uint64_t kSeed = 0;

struct Arguments {
  int images = 4, threads = 1;
  bool fast = false;
};

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    int* value = flag == "--images" ? &arguments.images : flag == "--threads" ? &arguments.threads : nullptr;
    if (flag == "--fast") {
      arguments.fast = true;
    } else if (value == nullptr || ++i == argc || (*value = std::atoi(argv[i])) < 1) {
      fmt::print(stderr, "error: there is no flag {}, or no positive number follows it.\nusage: {} {}\n", flag, argv[0],
                 "[--images N] [--threads N] [--fast]");
      std::exit(2);
    }
  }
  return arguments;
}

train::NetworkConfig published_network(bool fast) {
  train::NetworkConfig network;
  network.backbone = model::vit_preset("vit_small");
  network.backbone.patch_size = 16;
  network.dino_head = network.ibot_head = {.in_dim = network.backbone.embed_dim};
  network.fast_products = fast;
  return network;
}

/// Every second crop is masked. The number of masked patches is fixed, the middle of each crop's share of the published
/// 0.1 to 0.5, so that all iterations do the same work.
at::Tensor random_masks(std::int64_t images, std::int64_t patches, std::uint64_t iteration) {
  at::Tensor masks = at::zeros({2 * images, patches}, at::kBool);
  for (std::int64_t i = 0; i < images; ++i) {
    const double ratio = 0.1 + 0.4 * (static_cast<double>(i) + 0.5) / static_cast<double>(images);
    core::Random random(kSeed, core::Purpose::mask, iteration, static_cast<std::uint32_t>(i));
    const auto count = static_cast<std::int64_t>(static_cast<double>(patches) * ratio);
    for (const std::int64_t patch : core::random_subset(random, patches, count)) masks[2 * i][patch] = true;
  }
  return masks;
}

train::StepInput random_input(const model::VitConfig& backbone, std::int64_t images, std::int64_t iteration) {
  train::MicroBatch batch;
  batch.global_crops = at::randn({2 * images, 3, 224, 224});
  batch.local_crops = at::randn({kLocalCrops * images, 3, 96, 96});
  batch.masks = random_masks(images, static_cast<std::int64_t>(backbone.grid()) * backbone.grid(),
                             static_cast<std::uint64_t>(iteration));
  const std::vector<double> rates(static_cast<std::size_t>(backbone.depth), 0.3);
  batch.kept_global = train::kept_rows(rates, {images, 2, images, iteration}, kSeed, 0);
  batch.kept_local = train::kept_rows(rates, {images, kLocalCrops, images, iteration}, kSeed, 1);

  train::StepInput input;
  input.batches.push_back(batch);
  input.group = images;
  input.schedule = {
      .lr = 1e-4, .weight_decay = 0.04, .momentum = 0.992, .teacher_temperature = 0.04, .last_layer_lr = 1e-4};
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  // As the program itself does.
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
  comm::Environment environment(argc, argv);
  at::set_num_threads(arguments.threads);
  at::set_num_interop_threads(1);

  const train::NetworkConfig config = published_network(arguments.fast);
  train::Network student(config), teacher(config);
  for (train::Network* network : {&student, &teacher})
    for (const train::NetworkParameter& p : network->parameters()) model::initialise(p.parameter, p.prefix, kSeed);
  comm::Communicator& world = environment.world();
  train::Units units(world, student, teacher, {});
  train::Trainer trainer(world, world, student, teacher, units, {}, {});

  std::int64_t iteration = 0;
  train::StepResult result;
  const auto iterate = [&] {
    const train::StepInput input = random_input(config.backbone, arguments.images, iteration++);
    return bench::seconds([&] { result = trainer.run(input); });
  };
  iterate();
  for (std::string line; std::getline(std::cin, line);) {
    const double seconds = iterate();
    if (result.verdict != train::StepVerdict::updated) {
      fmt::print(stderr, "error: iteration {} is not finite.\n", iteration);
      return 5;
    }
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    fmt::print("{{\"seconds\": {:.4f}, \"peak_bytes\": {}, \"loss\": {:.4f}}}\n", seconds, usage.ru_maxrss * 1024,
               result.total);
    std::fflush(stdout);
  }
}
