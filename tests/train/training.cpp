#include <algorithm>
#include <fstream>
#include <map>
#include <numeric>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "comm/environment.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "data/pixels.hpp"
#include "features/extract.hpp"
#include "io/image.hpp"
#include "io/sharded_array.hpp"
#include "model/weights.hpp"
#include "testing.hpp"
#include "tiff.hpp"
#include "train/loop.hpp"
#include "train/small_run.hpp"

namespace allosaur {
namespace {

using testing::small_options;
using testing::write_file;
using testing::write_images;

/// A few noisy images of 12 bits in 16: TIFF, and PNG too with one channel.
void write_deep_images(const std::filesystem::path& folder, int channels, int count) {
  std::filesystem::create_directories(folder);
  for (int i = 0; i < count; ++i) {
    core::Random random(6, core::Purpose::demo, static_cast<std::uint64_t>(i));
    std::vector<std::uint16_t> samples(static_cast<std::size_t>(24 * 20 * channels));
    for (std::uint16_t& sample : samples) sample = static_cast<std::uint16_t>(random.below(4096));
    if (channels == 1 && i % 2 == 0)
      write_file(folder / fmt::format("{:03}.png", i), io::encode_grey16_png(samples, 24, 20));
    else
      write_file(folder / fmt::format("{:03}.tif", i), testing::tiff16(24, 20, channels, samples));
  }
}

/// Runs a pretraining on a group of ranks to its end, or to its `stop_at`.
train::LoopResult pretrain(comm::Communicator& group, const std::filesystem::path& images,
                           const std::filesystem::path& run, const train::TrainConfig& config) {
  comm::StopSignal stop;
  comm::Watchdog watchdog(testing::log(), group, std::chrono::seconds(0));
  train::LoopContext context{group, group, testing::log(), nullptr, stop, watchdog, run};
  return train::pretrain(context, config, data::open_dataset(group, images, data::Labels::ignored));
}

train::LoopResult pretrain(comm::Communicator& group, const std::filesystem::path& images,
                           const std::filesystem::path& run, const core::Options& options, std::int64_t stop_at = 0) {
  train::TrainConfig config = train::read_config(options, group.size());
  if (stop_at > 0) config.stop_at = stop_at;
  return pretrain(group, images, run, config);
}

at::Tensor student_and_teacher(const std::filesystem::path& checkpoint) {
  const io::ShardedReader reader(checkpoint / model::kCheckpointFile);
  std::vector<at::Tensor> all;
  for (const std::string& name : reader.names()) all.push_back(reader.read(name).to(at::kFloat).flatten());
  return at::cat(all).nan_to_num(-1);
}

TEST_CASE("a run in two parts is bit-equal to a run in one, and close to one on another number of ranks") {
  auto& world = testing::world();
  if (world.size() > 2) return;  // the batch is of two groups
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 21);
  struct Variant {
    std::string centering, precision;
    std::int64_t micro_batch;
  };
  // One rank has two groups, and can take them one after the other.
  const std::int64_t micro = world.size() == 1 ? 4 : 0;
  for (const Variant& variant : {Variant{"centering", "float32", 0},
                                 {"sinkhorn_knopp", "float32", micro},
                                 {"centering", "float16", micro},
                                 {"sinkhorn_knopp", "bfloat16", 0}}) {
    CAPTURE(variant.centering);
    CAPTURE(variant.precision);
    core::Options options = small_options();
    options.set("train.centering", variant.centering);
    options.set("train.precision", variant.precision);
    options.set("train.micro_batch_size", variant.micro_batch);
    options.set("ibot.separate_head", variant.centering == "sinkhorn_knopp");
    const bool scales = variant.precision == "float16";
    // Class tokens of a fresh network hardly differ, so that these gradients would overflow at every scale above 1.
    if (scales) options.set("dino.koleo_loss_weight", 0.0);
    const std::int64_t total = scales ? 40 : 10, half = total / 2;
    options.set("optim.epochs", static_cast<double>(total) / 10);
    options.set("train.checkpoint_period", half);
    const auto run = [&](const char* name) {
      return folder.path() / fmt::format("{}_{}_{}", variant.centering, variant.precision, name);
    };
    const auto once = pretrain(world, folder.path() / "images", run("once"), options);
    CHECK(once.iterations == total);
    CHECK(pretrain(world, folder.path() / "images", run("twice"), options, half).iterations == half);
    const auto twice = pretrain(world, folder.path() / "images", run("twice"), options);
    CHECK(twice.iterations == total);
    const at::Tensor expected = student_and_teacher(once.checkpoint);
    CHECK(at::equal(expected, student_and_teacher(twice.checkpoint)));
    const auto middle = run("once") / "checkpoints" / fmt::format("{:07}", half);
    CHECK_FALSE(at::equal(expected, student_and_teacher(middle)));
    // Both parts update the student; in the first one float16 finds its loss scale.
    const auto trainer = [](const std::filesystem::path& checkpoint) {
      const at::Tensor state = io::ShardedReader(checkpoint / model::kCheckpointFile).read("trainer");
      return std::pair{state[0].item<double>(), state[2].item<std::int64_t>()};  // loss scale, updates
    };
    const auto [scale, updates] = trainer(middle);
    CHECK(scale < (scales ? 65536 : 2));
    CHECK(updates > 0);
    CHECK(trainer(once.checkpoint) == std::pair{scale, updates + half});
    // Stopped there, it stays there.
    const auto stopped = pretrain(world, folder.path() / "images", run("stopped"), options, half);
    CHECK_FALSE(stopped.stopped_before);
    for (const std::int64_t stop_at : {half, std::int64_t{3}}) {
      const auto again = pretrain(world, folder.path() / "images", run("stopped"), options, stop_at);
      CHECK(again.stopped_before);
      CHECK(again.iterations == half);
    }
    if (variant.precision != "float32") continue;

    // From one rank to all, and from all to one: the same up to the order of sums.
    const auto alone = world.split(world.rank(), 0);
    const auto close = [&](const train::LoopResult& finished) {
      const at::Tensor values = student_and_teacher(finished.checkpoint);
      CHECK((values - expected).norm().item<double>() < 1e-4 * expected.norm().item<double>());
    };
    if (world.rank() == 0) {
      close(pretrain(*alone, folder.path() / "images", run("stopped"), options));
      CHECK(pretrain(*alone, folder.path() / "images", run("alone"), options, half).iterations == half);
    }
    world.barrier();
    close(pretrain(world, folder.path() / "images", run("alone"), options));
  }
}

TEST_CASE("a batch that follows the number of ranks stays that of the run's beginning") {
  ALLOSAUR_NEEDS_RANKS(2);
  auto& world = testing::world();
  const testing::TemporaryDirectory folder;
  const auto images = folder.path() / "images", run = folder.path() / "run";
  write_images(images, 12);
  core::Options options = small_options();
  options.set("train.batch_size", std::int64_t{0});
  const std::int64_t batch = 4 * world.size();
  CHECK_FALSE(train::batch_size_of_run(run / "checkpoints"));
  const at::Tensor expected = student_and_teacher(pretrain(world, images, folder.path() / "once", options).checkpoint);
  CHECK(pretrain(world, images, run, options, 5).iterations == 5);
  const auto half = world.split(world.rank() % 2, world.rank());
  if (world.rank() % 2 == 0) {
    const std::string refusal = fmt::format("of a run with {} images an iteration, this one has {}", batch, batch / 2);
    CHECK_THROWS_WITH_AS(pretrain(*half, images, run, options), doctest::Contains(refusal.c_str()), core::UsageError);
    const auto former = train::batch_size_of_run(run / "checkpoints");
    CHECK(former == batch);
    const auto finished = pretrain(*half, images, run, train::read_config(options, half->size(), former));
    const at::Tensor values = student_and_teacher(finished.checkpoint);
    CHECK((values - expected).norm().item<double>() < 1e-4 * expected.norm().item<double>());
  }
  world.barrier();
}

TEST_CASE("every evaluation is made once, also where the run was stopped at one") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  std::vector<std::int64_t> evaluated;
  bool abandoned = false;
  std::string run = "run";
  const auto part = [&](std::int64_t stop_at) {
    comm::StopSignal stop;
    comm::Watchdog watchdog(testing::log(), world, std::chrono::seconds(0));
    train::LoopContext context{world, world, testing::log(), nullptr, stop, watchdog, folder.path() / run};
    context.evaluate_period = 4;
    context.evaluate = [&](std::int64_t iteration, const auto&) {
      if (abandoned) return false;
      evaluated.push_back(iteration);
      return true;
    };
    context.evaluated = [&](std::int64_t iteration) { return std::ranges::count(evaluated, iteration) > 0; };
    train::TrainConfig config = train::read_config(small_options(), world.size());
    config.stop_at = stop_at;
    return train::pretrain(context, config, data::open_dataset(world, folder.path() / "images", data::Labels::ignored));
  };
  // Stopped before the first iteration, on the way (where there would be no checkpoint), and at the end.
  for (const std::int64_t iteration : {0, 4, 8, 10}) {
    CAPTURE(iteration);
    abandoned = true;
    const train::LoopResult stopped = part(0);
    CHECK(stopped.preempted);
    CHECK(stopped.iterations == iteration);
    CHECK(stopped.checkpoint.filename() == fmt::format("{:07}", iteration));
    CHECK(std::ranges::count(evaluated, iteration) == 0);
    abandoned = false;
    CHECK(part(iteration < 10 ? iteration + 1 : 0).preempted == (iteration < 10));
    CHECK(evaluated.back() == iteration);
  }
  CHECK(evaluated == std::vector<std::int64_t>{0, 4, 8, 10});
  evaluated.clear();
  run = "other run";
  part(4);
  CHECK(evaluated == std::vector<std::int64_t>{0});
  part(6);
  CHECK(evaluated == std::vector<std::int64_t>{0, 4});
  for (int i = 0; i < 2; ++i) {
    part(0);
    CHECK(evaluated == std::vector<std::int64_t>{0, 4, 8, 10});
  }
}

TEST_CASE("a damaged checkpoint is passed over for the one before, and none left is an error") {
  auto& world = testing::world();
  if (world.size() > 2) return;  // the batch is of two groups
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  const core::Options options = small_options();
  const auto run = folder.path() / "run";
  const auto first = pretrain(world, folder.path() / "images", run, options);
  const at::Tensor expected = student_and_teacher(first.checkpoint);
  const auto damage = [&](const std::filesystem::path& checkpoint) {
    world.barrier();  // nobody reads any more
    comm::coordinate(world, [&] {
      if (world.rank() != 0) return;
      for (const auto& entry : std::filesystem::directory_iterator(checkpoint)) {
        if (entry.path().filename() == model::kCheckpointFile) continue;
        std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(entry.file_size() / 2));
        const std::string garbage(64, 'x');
        file.write(garbage.data(), 64);
      }
    });
  };
  damage(first.checkpoint);
  const auto again = pretrain(world, folder.path() / "images", run, options);  // from iteration 5
  CHECK(at::equal(student_and_teacher(again.checkpoint), expected));
  for (const char* name : {"0000000", "0000005", "0000010"}) damage(run / "checkpoints" / name);
  CHECK_THROWS_AS(pretrain(world, folder.path() / "images", run, options), core::StorageError);
}

TEST_CASE("a checkpoint's teacher is a backbone that loads") {
  auto& world = testing::world();
  if (world.size() > 2) return;  // the batch is of two groups
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  core::Options options = small_options();
  const auto result = pretrain(world, folder.path() / "images", folder.path() / "run", options, 2);
  const auto backbone = model::load_backbone(result.checkpoint);
  CHECK(backbone->forward(at::zeros({1, 3, 16, 16})).cls.isfinite().all().item<bool>());
  const auto initial = model::load_backbone(folder.path() / "run" / "checkpoints" / "0000000");
  CHECK(model::fingerprint(*initial) == model::fingerprint(*model::new_backbone(initial->config(), 0)));

  // Another run starts from these weights.
  options.set("student.pretrained_weights", result.checkpoint.string());
  const auto second = pretrain(world, folder.path() / "images", folder.path() / "second", options, 1);
  CHECK(model::fingerprint(*model::load_backbone(folder.path() / "second" / "checkpoints" / "0000000")) ==
        model::fingerprint(*backbone));
  CHECK(second.iterations == 1);
  // It goes on without them.
  world.barrier();
  comm::coordinate(world, [&] {
    if (world.rank() == 0) std::filesystem::remove_all(folder.path() / "run");
  });
  CHECK(pretrain(world, folder.path() / "images", folder.path() / "second", options, 2).iterations == 2);
}

TEST_CASE("a frozen teacher is distilled into a smaller network") {
  auto& world = testing::world();
  if (world.size() > 2) return;  // the batch is of two groups
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  const auto teacher = pretrain(world, folder.path() / "images", folder.path() / "teacher", small_options(), 2);
  core::Options options = small_options();
  options.set("student.embed_dim", std::int64_t{12});
  options.set("student.depth", std::int64_t{1});
  options.set("student.num_heads", std::int64_t{2});
  options.set("distillation.checkpoint_path", teacher.checkpoint.string());
  CHECK_THROWS_WITH_AS(train::read_config(options, world.size()), doctest::Contains("drop_path_rate"),
                       core::UsageError);
  options.set("student.drop_path_rate", 0.0);
  const auto student = pretrain(world, folder.path() / "images", folder.path() / "student", options, 6);
  CHECK(student.iterations == 6);
  const auto result = model::load_backbone(student.checkpoint);
  CHECK(result->config().embed_dim == 12);
  CHECK(model::fingerprint(*result) !=
        model::fingerprint(*model::load_backbone(folder.path() / "student" / "checkpoints" / "0000000")));

  // What is learned depends on the teacher, and a run keeps its own.
  const auto initial = folder.path() / "teacher" / "checkpoints" / "0000000";
  core::Options other = options;
  other.set("distillation.checkpoint_path", initial.string());
  const auto learned = pretrain(world, folder.path() / "images", folder.path() / "of initial", other, 6);
  CHECK(model::fingerprint(*result) != model::fingerprint(*model::load_backbone(learned.checkpoint)));
  for (const std::string& changed : {std::string(), initial.string()}) {
    other.set("distillation.checkpoint_path", changed);
    CHECK_THROWS_WITH_AS(pretrain(world, folder.path() / "images", folder.path() / "student", other, 8),
                         doctest::Contains("give the former distillation.checkpoint_path"), core::UsageError);
  }
  CHECK(pretrain(world, folder.path() / "images", folder.path() / "student", options, 7).iterations == 7);

  options.set("dino.head_n_prototypes", std::int64_t{16});
  CHECK_THROWS_WITH_AS(pretrain(world, folder.path() / "images", folder.path() / "other", options, 6),
                       doctest::Contains("dino.head_n_prototypes 32, the student 16"), core::UsageError);
}

TEST_CASE("a run starts from another's checkpoint at another resolution") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  const auto first = pretrain(world, folder.path() / "images", folder.path() / "first", small_options(), 5);
  core::Options options = small_options();
  options.set("crops.global_crops_size", std::int64_t{24});
  options.set("train.start_from", first.checkpoint.string());
  const auto second = pretrain(world, folder.path() / "images", folder.path() / "second", options, 1);
  CHECK(second.iterations == 1);
  const auto small = model::load_backbone(first.checkpoint),
             large = model::load_backbone(folder.path() / "second" / "checkpoints" / "0000000");
  const auto before = small->parameters(), after = large->parameters();
  REQUIRE(before.size() == after.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    CAPTURE(before[i].name);
    if (before[i].name != "pos_embed")
      CHECK(at::equal(*before[i].tensor, *after[i].tensor));
    else {
      CHECK(after[i].tensor->size(1) == 1 + 36);
      CHECK(at::equal(before[i].tensor->select(1, 0), after[i].tensor->select(1, 0)));
      const at::Tensor grid = before[i].tensor->narrow(1, 1, 16).view({1, 4, 4, -1}).permute({0, 3, 1, 2});
      const at::Tensor expected = at::upsample_bicubic2d(grid, {6, 6}, false).flatten(2).transpose(1, 2);
      CHECK(at::allclose(after[i].tensor->narrow(1, 1, 36), expected, 1e-6, 1e-8));
    }
  }
  // Heads and the student's own values came along: its first loss is not that of a new network.
  const io::ShardedReader theirs(first.checkpoint / model::kCheckpointFile);
  const io::ShardedReader ours(folder.path() / "second" / "checkpoints" / "0000000" / model::kCheckpointFile);
  for (const std::string name : {"student.dino_head.all", "teacher.dino_head.all", "student.backbone.blocks.1"})
    CHECK(at::equal(theirs.read(name), ours.read(name)));
}

TEST_CASE("deep grey images and images of five channels are learned from, and described by what was learned") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  const testing::TemporaryDirectory folder;
  const auto rgb = folder.path() / "rgb";
  write_images(rgb, 12);
  const auto other = pretrain(world, rgb, folder.path() / "rgb run", small_options(), 1);
  for (const int channels : {1, 5}) {
    CAPTURE(channels);
    const auto images = folder.path() / fmt::format("images {}", channels);
    const auto run = [&](const char* name) { return folder.path() / fmt::format("{} {}", name, channels); };
    comm::coordinate(world, [&] {
      if (world.rank() == 0) write_deep_images(images, channels, 12);
    });
    core::Options options = small_options();
    options.set("data.channels", std::int64_t{channels});
    options.set("data.range16", std::vector<std::int64_t>{0, 4095});
    const auto result = pretrain(world, images, run("run"), options, 2);
    CHECK(result.iterations == 2);

    const auto file = run("exported") / "backbone.safetensors";
    comm::coordinate(world, [&] {
      if (world.rank() != 0) return;
      std::filesystem::create_directories(file.parent_path());
      model::save_backbone(file, *model::load_backbone(result.checkpoint));
    });
    const auto backbone = model::load_backbone(file);
    CHECK(backbone->config().in_channels == channels);
    CHECK(model::fingerprint(*backbone) !=
          model::fingerprint(*model::load_backbone(run("run") / "checkpoints" / "0000000")));
    const features::ExtractConfig extract{
        .pixels = data::read_pixel_config(options), .resize = 16, .crop = 16, .average_patches = true};
    const auto dataset = data::open_dataset(world, images, data::Labels::ignored);
    const auto features = features::extract(*backbone, *dataset, world.share(dataset->size()), extract);
    CHECK(features.patch_mean.isfinite().all().item<bool>());
    CHECK(std::ranges::all_of(features.area, [](std::int64_t area) { return area > 0; }));

    // Weights of other channels are refused, wherever they come from.
    const std::string refusal =
        fmt::format("reads images of 3 channels, but data.channels is {}: set it to 3", channels);
    for (const char* key : {"student.pretrained_weights", "train.start_from"}) {
      core::Options from = options;
      from.set(key, other.checkpoint.string());
      CHECK_THROWS_WITH_AS(pretrain(world, images, run("refused"), from, 1), doctest::Contains(refusal.c_str()),
                           core::UsageError);
    }
    options.set("student.drop_path_rate", 0.0);
    options.set("distillation.checkpoint_path", other.checkpoint.string());
    CHECK_THROWS_WITH_AS(pretrain(world, images, run("refused"), options, 1), doctest::Contains("has data.channels 3"),
                         core::UsageError);
  }
}

TEST_CASE("crops in 16 bits are those that the networks would round to") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  core::Options options = small_options();
  options.set("train.precision", std::string("bfloat16"));
  const auto learned = [&](const char* run, at::ScalarType type) {
    train::TrainConfig config = train::read_config(options, world.size());
    CHECK((config.loader.augment.type == at::kBFloat16));
    config.loader.augment.type = type;
    config.stop_at = 2;
    return student_and_teacher(pretrain(world, folder.path() / "images", folder.path() / run, config).checkpoint);
  };
  CHECK(learned("16 bits", at::kBFloat16).equal(learned("32 bits", at::kFloat)));
}

TEST_CASE("crops finished on the device are those of the loader's threads") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  core::Options options = small_options();
  if (world.size() == 1) options.set("train.micro_batch_size", std::int64_t{4});
  for (const char* precision : {"float32", "bfloat16"}) {
    options.set("train.precision", std::string(precision));
    const auto learned = [&](bool on_device) {
      options.set("crops.finish_on_device", on_device);
      const std::string run = fmt::format("{}_{}", precision, on_device);
      return student_and_teacher(
          pretrain(world, folder.path() / "images", folder.path() / run, options, /*stop_at=*/3).checkpoint);
    };
    CHECK(learned(true).equal(learned(false)));
  }
}

TEST_CASE("iterations that are not finite are skipped, and too many in a row end the run") {
  auto& world = testing::world();
  if (world.size() > 2) return;
  const testing::TemporaryDirectory folder;
  write_images(folder.path() / "images", 12);
  core::Options options = small_options();
  options.set("optim.base_lr", 1e30);
  options.set("train.max_bad_iterations", std::int64_t{2});
  CHECK_THROWS_WITH_AS(pretrain(world, folder.path() / "images", folder.path() / "run", options),
                       doctest::Contains("3 iterations in a row are not finite"), core::NumericalError);
  // The checkpoint at the start is whole.
  CHECK(model::load_backbone(folder.path() / "run" / "checkpoints" / "0000000")
            ->forward(at::zeros({1, 3, 16, 16}))
            .cls.isfinite()
            .all()
            .item<bool>());
}

TEST_CASE("batches that ranks cannot share are refused") {
  core::Options options = small_options();
  CHECK_THROWS_WITH_AS(train::read_config(options, 3), doctest::Contains("multiple of 3"), core::UsageError);
  CHECK_THROWS_WITH_AS(train::read_config(options, 4), doctest::Contains("divisor of 2"), core::UsageError);
  options.set("crops.global_crops_size", std::int64_t{15});
  CHECK_THROWS_AS(train::read_config(options, 1), core::UsageError);
}

TEST_CASE("parameter groups are the published ones") {
  train::NetworkConfig config;
  config.backbone = model::vit_preset("vit_tiny");
  config.backbone.depth = 3;
  config.dino_head =
      config.ibot_head = {.in_dim = 192, .hidden_dim = 8, .bottleneck_dim = 4, .layers = 3, .prototypes = 8};
  train::Network network(config);
  const train::OptimizerConfig optimizer;  // decay 0.9, patch embedding 0.2
  for (const train::NetworkParameter& p : network.parameters()) {
    CAPTURE(p.name());
    const train::ParameterGroup group = train::parameter_group(p, 3, optimizer);
    if (p.name() == "backbone.pos_embed")
      CHECK((group.lr_mult == doctest::Approx(std::pow(0.9, 4)) && group.wd_mult == 1));
    if (p.name() == "backbone.patch_embed.proj.weight") CHECK(group.lr_mult == doctest::Approx(0.2 * std::pow(0.9, 4)));
    if (p.name() == "backbone.blocks.2.mlp.fc1.weight") CHECK(group.lr_mult == doctest::Approx(0.9));
    if (p.name() == "backbone.blocks.0.ls1.gamma") CHECK(group.wd_mult == 0);
    if (p.name() == "backbone.norm.weight") CHECK((group.lr_mult == 1 && group.wd_mult == 0));
    if (p.name() == "dino_head.mlp.0.bias") CHECK((group.wd_mult == 0 && !group.last_layer));
    if (p.name() == "dino_head.last_layer.weight_g") CHECK((group.last_layer && group.wd_mult == 1));
  }
}

TEST_CASE("parameter groups are those of recorded runs") {
  for (const char* fixture : {"centering_shared_mlp", "sinkhorn_separate_swiglu"}) {
    CAPTURE(fixture);
    const auto file = testing::data_directory() / "golden" / fixture / "meta.json";
    const auto meta = nlohmann::json::parse(core::read_text(file));
    const auto& optim = meta.at("config").at("optim");
    train::OptimizerConfig optimizer;
    optimizer.layerwise_decay = optim.at("layerwise_decay");
    optimizer.patch_embed_lr_mult = optim.at("patch_embed_lr_mult");
    train::NetworkConfig config;
    config.backbone = {.image_size = 112, .patch_size = 14, .embed_dim = 64, .depth = 2, .num_heads = 2};
    config.backbone.swiglu = meta.at("config").at("student").at("ffn_layer") != "mlp";
    config.dino_head = {.in_dim = 64, .hidden_dim = 16, .bottleneck_dim = 8, .layers = 3, .prototypes = 8};
    config.ibot_head = config.dino_head;
    config.separate_ibot_head = meta.at("config").at("ibot").at("separate_head");
    train::Network network(config);
    std::map<std::string, train::ParameterGroup> ours;
    for (const train::NetworkParameter& p : network.parameters())
      ours[p.name()] = train::parameter_group(p, config.backbone.depth, optimizer);
    std::size_t recorded = 0;
    for (const auto& theirs : meta.at("param_groups"))
      for (const std::string name : theirs.at("params")) {
        CAPTURE(name);
        ++recorded;
        REQUIRE(ours.contains(name));
        CHECK(ours[name].lr_mult == doctest::Approx(theirs.at("lr_multiplier").get<double>()));
        CHECK(ours[name].wd_mult == theirs.at("wd_multiplier").get<double>());
        CHECK(ours[name].last_layer == theirs.at("is_last_layer").get<bool>());
      }
    CHECK(recorded == ours.size());
  }
}

TEST_CASE("stochastic depth keeps the published share of every group, whichever rank holds it") {
  const std::vector<double> rates(2, 0.4);
  const auto both = train::kept_rows(rates, {8, 2, 4, 10}, 3, 0);
  const auto first = train::kept_rows(rates, {4, 2, 4, 10}, 3, 0),
             second = train::kept_rows(rates, {4, 2, 4, 11}, 3, 0);
  REQUIRE(both.size() == 4);
  for (std::size_t b = 0; b < both.size(); ++b) {
    CHECK(both[b].numel() == 2 * 4);  // floor(8 * 0.6) of each group's 8 rows
    // Rows of the joint batch, crop-major over 8 images, are those of the parts.
    const auto joint = [](const at::Tensor& rows, std::int64_t offset) {
      return rows.floor_divide(4) * 8 + offset + rows.remainder(4);
    };
    CHECK(at::equal(at::cat({joint(first[b], 0), joint(second[b], 4)}), both[b]));
  }
  CHECK(train::kept_rows({0.0, 0.0}, {8, 2, 4, 0}, 3, 0).empty());
}

}  // namespace
}  // namespace allosaur
