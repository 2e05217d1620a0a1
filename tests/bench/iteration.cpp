// One iteration of the production engine: a vision transformer of 16-pixel patches with one head of 65,536 prototypes,
// 2 + 8 random crops an image, the images of an iteration in one group, on one rank. tests/bench/iteration runs it in
// turn with iteration_peer.py, which works alike: an unmeasured iteration, then one for each line of standard input,
// with a JSON object on standard output.
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#ifdef ALLOSAUR_HAVE_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

#include "bench/bench.hpp"
#include "comm/environment.hpp"
#ifdef ALLOSAUR_HAVE_CUDA
#include "comm/nccl_communicator.hpp"
#endif
#include "core/memory.hpp"
#include "core/random.hpp"
#include "train/measure.hpp"
#include "train/plan.hpp"
#include "train/step.hpp"

namespace {

using namespace allosaur;

constexpr std::int64_t kLocalCrops = 8, kGlobalSide = 224, kLocalSide = 96;
constexpr std::uint64_t kSeed = 0;

struct Arguments {
  std::string arch = "vit_small", device = "cpu", precision = "float32", images = "4", threads = "1";
  bool fast = false, recompute = false;
};

[[noreturn]] void refuse(const std::string& what) {
  fmt::print(stderr,
             "error: {}.\nusage: bench_iteration [--arch NAME] [--device cpu|cuda] [--precision "
             "float32|bfloat16|float16] [--images N] [--threads N] [--fast] [--recompute]\n",
             what);
  std::exit(2);
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    std::string* value = flag == "--arch"        ? &arguments.arch
                         : flag == "--device"    ? &arguments.device
                         : flag == "--precision" ? &arguments.precision
                         : flag == "--images"    ? &arguments.images
                         : flag == "--threads"   ? &arguments.threads
                                                 : nullptr;
    if (flag == "--fast")
      arguments.fast = true;
    else if (flag == "--recompute")
      arguments.recompute = true;
    else if (value == nullptr || ++i == argc)
      refuse("there is no flag " + flag + ", or no value follows it");
    else
      *value = argv[i];
  }
  return arguments;
}

int positive(const std::string& flag, const std::string& text) {
  const int value = std::atoi(text.c_str());
  if (value < 1) refuse(fmt::format("{} is {}; it must be a positive number", flag, text));
  return value;
}

train::Precision precision(const std::string& name) {
  for (const auto p : {train::Precision::float32, train::Precision::bfloat16, train::Precision::float16})
    if (name == train::name_of(p)) return p;
  refuse("there is no precision " + name);
}

train::NetworkConfig published_network(const std::string& arch, bool fast) {
  train::NetworkConfig network;
  network.backbone = model::vit_preset(arch);
  network.backbone.patch_size = 16;
  network.backbone.swiglu = arch == "vit_giant2";
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

train::StepInput random_input(const train::TrainConfig& config, std::int64_t iteration) {
  const std::int64_t images = config.batch_size, grid = config.network.backbone.grid();
  const auto crops = [&](std::int64_t count, std::int64_t side) {
    return at::randn({count * images, 3, side, side}).to(config.units.device);
  };
  train::MicroBatch batch;
  batch.global_crops = crops(2, kGlobalSide);
  batch.local_crops = crops(kLocalCrops, kLocalSide);
  batch.masks = random_masks(images, grid * grid, static_cast<std::uint64_t>(iteration));
  batch.kept_global = train::kept_rows(config.drop_path_rates, {images, 2, images, iteration}, kSeed, 0);
  batch.kept_local = train::kept_rows(config.drop_path_rates, {images, kLocalCrops, images, iteration}, kSeed, 1);

  train::StepInput input;
  input.batches.push_back(batch);
  input.group = images;
  input.schedule = {
      .lr = 1e-4, .weight_decay = 0.04, .momentum = 0.992, .teacher_temperature = 0.04, .last_layer_lr = 1e-4};
  return input;
}

/// Waits until a GPU has done what was queued.
void synchronise(const at::Device& device) {
#ifdef ALLOSAUR_HAVE_CUDA
  if (device.is_cuda()) c10::cuda::device_synchronize();
#endif
  (void)device;
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = parse(argc, argv);
  comm::Environment environment(argc, argv);
  at::set_num_threads(positive("--threads", arguments.threads));
  at::set_num_interop_threads(1);
  comm::Communicator& world = environment.world();

  train::TrainConfig config;
  config.network = published_network(arguments.arch, arguments.fast);
  config.network.checkpoint_activations = arguments.recompute;
  config.drop_path_rates.assign(static_cast<std::size_t>(config.network.backbone.depth), 0.3);
  config.batch_size = config.group = config.micro_batch = positive("--images", arguments.images);
  config.units.precision = precision(arguments.precision);
  config.loader.augment.local_crops_size = kLocalSide;
  comm::Communicator* data = &world;
#ifdef ALLOSAUR_HAVE_CUDA
  std::unique_ptr<comm::Communicator> nccl;
  if (arguments.device == "cuda") {
    if (c10::cuda::device_count() == 0) refuse("there is no CUDA device");
    config.units.device = at::Device(at::kCUDA, 0);
    nccl = std::make_unique<comm::NcclCommunicator>(world, 0);
    data = nccl.get();
  }
#endif
  if (arguments.device != config.units.device.str().substr(0, arguments.device.size()))
    refuse("this build cannot use the device " + arguments.device);

  core::return_freed_memory();  // as the program does
  train::Network student(config.network), teacher(config.network);
  for (train::Network* network : {&student, &teacher})
    for (const train::NetworkParameter& p : network->parameters()) model::initialise(p.parameter, p.prefix, kSeed);
  train::Units units(*data, student, teacher, config.units);
  train::Trainer trainer(world, *data, student, teacher, units, {}, config.units);
  const train::Plan plan = train::plan(config, 1);
  const double work = (plan.teacher.total() + plan.student.total()) * static_cast<double>(config.batch_size),
               rate = train::matrix_rate(config.units, arguments.fast);

  core::keep_freed_memory();

  std::int64_t iteration = 0;
  train::StepResult result;
  const auto iterate = [&] {
    const train::StepInput input = random_input(config, iteration++);
    synchronise(config.units.device);
    return bench::seconds([&] {
      result = trainer.run(input);
      synchronise(config.units.device);
    });
  };
  do {
    iterate();
  } while (result.verdict == train::StepVerdict::overflowed && iteration < 20);  // float16 looks for its loss scale
  for (std::string line; std::getline(std::cin, line);) {
    const double seconds = iterate();
    if (result.verdict == train::StepVerdict::not_finite) {
      fmt::print(stderr, "error: iteration {} is not finite.\n", iteration);
      return 5;
    }
    fmt::print("{{\"seconds\": {:.4f}, \"peak_bytes\": {:.0f}, \"loss\": {:.4f}, \"utilisation\": {:.3f}}}\n", seconds,
               train::peak_memory_bytes(config.units.device), result.total, work / seconds / rate);
    std::fflush(stdout);
  }
}
