#include "train/plan.hpp"

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/files.hpp"
#include "data/pixels.hpp"
#include "testing.hpp"
#include "train/network.hpp"

namespace allosaur {
namespace {

train::TrainConfig read(const std::vector<std::string>& flags, int ranks) {
  core::Options options;
  data::declare_pixel_options(options);
  train::declare_options(options);
  options.parse(flags);
  return train::read_config(options, ranks);
}

/// ViT-S/16, 2 x 224 + 8 x 96 pixels, one shared head of 65,536, batch 4.
train::TrainConfig small(std::vector<std::string> flags = {}) {
  flags.insert(flags.end(), {"--student.arch=vit_small", "--train.batch_size=4", "--train.batch_size_per_gpu=4"});
  return read(flags, 1);
}

/// A backbone of `arch` with patches of 14 pixels, on 4 groups of 8 images.
train::TrainConfig published(const std::string& arch, std::vector<std::string> flags = {}) {
  flags.insert(flags.end(), {"--student.arch=" + arch, "--student.patch_size=14", "--crops.local_crops_size=98",
                             "--train.batch_size=32", "--train.batch_size_per_gpu=8"});
  return read(flags, 1);
}

std::int64_t backbone_parameters(const train::Plan& plan) {
  std::int64_t count = 0;
  for (const auto& unit : plan.units)
    if (unit.name.starts_with("backbone.")) count += unit.parameters;
  return count;
}

}  // namespace

TEST_CASE("plan: parameters are those of the published networks") {
  const std::map<std::string, std::int64_t> expected{
      {"vit_small", 22056576}, {"vit_base", 86580480}, {"vit_large", 304368640}, {"vit_giant2", 1136480768}};
  for (const auto& [arch, count] : expected) {
    CAPTURE(arch);
    const std::string ffn = arch == "vit_giant2" ? "swiglufused" : "mlp";
    const auto config = published(arch, {"--crops.global_crops_size=518", "--student.ffn_layer=" + ffn});
    CHECK(backbone_parameters(train::plan(config, 1)) == count);
  }
}

TEST_CASE("plan: parameters of each unit are those of the network that is built") {
  for (const std::vector<std::string>& flags :
       {std::vector<std::string>{},
        {"--student.ffn_layer=swiglu", "--student.num_register_tokens=4"},
        {"--student.layerscale=0", "--ibot.separate_head=true", "--ibot.head_n_prototypes=64"},
        {"--dino.head_nlayers=1", "--crops.global_crops_size=64"},
        {"--student.qkv_bias=false"},
        {"--student.proj_bias=false", "--student.ffn_bias=false"},
        {"--data.channels=5"}}) {
    std::vector<std::string> all{"--student.embed_dim=24",    "--student.depth=2",
                                 "--student.num_heads=3",     "--dino.head_n_prototypes=32",
                                 "--dino.head_hidden_dim=16", "--dino.head_bottleneck_dim=8"};
    all.insert(all.end(), flags.begin(), flags.end());
    const auto config = small(all);
    train::Network network(config.network);
    std::map<std::string, std::int64_t> built, planned;
    for (const auto& parameter : network.parameters()) built[parameter.unit()] += parameter.parameter.tensor->numel();
    for (const auto& unit : train::plan(config, 1).units) planned[unit.name] = unit.parameters;
    CHECK(planned == built);
  }
}

TEST_CASE("plan: bytes of weights and optimiser follow the units' formula") {
  const std::int64_t parameters = train::plan(small(), 1).parameters();
  const auto state = [](const train::Plan& plan) {
    const auto& m = plan.memory;
    return m.weights + m.gradients + m.moments + m.masters + m.staging;
  };
  for (const int ranks : {1, 2, 4}) {
    const std::vector<std::string> batch{"--student.arch=vit_small", "--train.batch_size=8",
                                         "--train.batch_size_per_gpu=2"};
    const auto with = [&](std::vector<std::string> flags) {
      flags.insert(flags.end(), batch.begin(), batch.end());
      return train::plan(read(flags, ranks), ranks);
    };
    CHECK(state(with({})) == 12 * parameters + 8 * parameters / ranks);
    const train::Plan half = with({"--train.precision=bfloat16"});
    const std::int64_t head = parameters - backbone_parameters(half);
    CHECK(state(half) == 6 * parameters + 2 * (8 * parameters / ranks) + 4 * head);
    if (ranks < 4) {
      const train::Plan accumulated = with({"--train.precision=float16", "--train.micro_batch_size=2"});
      CHECK(state(accumulated) == 10 * parameters + 2 * (8 * parameters / ranks));
      CHECK(accumulated.memory.activations < half.memory.activations);
    }
  }
}

TEST_CASE("plan: bytes sent are those of the ring algorithms") {
  const auto sent = [](int ranks, std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--student.arch=vit_small", "--train.batch_size=8", "--train.batch_size_per_gpu=2"});
    return train::plan(read(flags, ranks), ranks).sent;
  };
  const std::int64_t parameters = train::plan(small(), 1).parameters();
  CHECK(sent(1).total() == 0);
  CHECK(sent(2).gradients == 2 * parameters);
  CHECK(sent(4).student == 3 * parameters);
  CHECK(sent(4).teacher == sent(4).student);
  CHECK(sent(2).centring == 2 * 65536 * 4);  // one all-reduce of a vector over prototypes for each of the two losses
  CHECK(sent(2, {"--train.centering=sinkhorn_knopp"}).centring == 6 * sent(2).centring);
  CHECK(sent(4, {"--train.precision=float16"}).student == sent(4).student / 2);
}

TEST_CASE("plan: more ranks need less memory and send more, for the same batch") {
  for (const char* precision : {"float32", "float16"}) {
    const auto of = [&](int ranks) {
      return train::plan(read({"--student.arch=vit_small", "--train.batch_size=16", "--train.batch_size_per_gpu=2",
                               fmt::format("--train.precision={}", precision)},
                              ranks),
                         ranks);
    };
    for (const int ranks : {1, 2, 4}) {
      const train::Plan few = of(ranks), many = of(2 * ranks);
      CHECK(many.memory.total() < few.memory.total());
      CHECK(many.memory.activations < few.memory.activations);
      CHECK(many.sent.total() > few.sent.total());
      CHECK(many.student.total() == doctest::Approx(few.student.total()));
      CHECK(many.checkpoint_bytes == few.checkpoint_bytes);
    }
  }
}

TEST_CASE("plan: the work of an image is that of the official iteration, without what nobody reads in the last block") {
  const auto gigaflops = [](const train::TrainConfig& config) {
    const train::Plan plan = train::plan(config, 1);
    return (plan.teacher.total() + plan.student.total()) * 1e-9;
  };
  // Neither class tokens nor compared: of 2 global crops 2 * 196 - 0.3 * 196, of 8 local ones 8 * 36. Projection and
  // feed-forward cost 18 D^2 a token and pass; the student has three passes.
  const double global = 2 * 196 - 0.3 * 196, local = 8 * 36, token = 18 * 384 * 384 * 1e-9;
  const double unread = (global + 3 * (global + local)) * token;
  const double unread_with_depth = (global + 3 * (global * 5 / 8 + local * 22 / 32)) * token;
  CHECK(gigaflops(small()) == doctest::Approx(92 - unread_with_depth).epsilon(0.01));
  CHECK(gigaflops(small({"--student.drop_path_rate=0"})) == doctest::Approx(124 - unread).epsilon(0.01));
  // The paper's ViT-g, backbones alone: 4.9 TFLOP an image, again with what its last block leaves out.
  const auto giant =
      train::plan(published("vit_giant2", {"--student.ffn_layer=swiglufused", "--student.drop_path_rate=0.4"}), 1);
  double backbones = 0;
  for (const train::Plan::Work* work : {&giant.teacher, &giant.student})
    backbones += work->total() - work->heads - work->prototypes;
  const double giant_global = 2 * 256 - 0.3 * 256, giant_local = 8 * 49, giant_token = 2 * 1536 * (1536 + 3 * 4096);
  const double giant_unread = (giant_global + 3 * 0.6 * (giant_global + giant_local)) * giant_token;
  CHECK(backbones * 1e-12 == doctest::Approx(4.9 - giant_unread * 1e-12).epsilon(0.02));
}

TEST_CASE("plan: recomputing blocks trades memory for one more forward of them") {
  const train::Plan kept = train::plan(small(), 1),
                    recomputed = train::plan(small({"--student.checkpoint_activations=true"}), 1);
  CHECK(recomputed.memory.activations < kept.memory.activations / 2);
  CHECK(recomputed.student.qkv == doctest::Approx(kept.student.qkv * 4 / 3));
  CHECK(recomputed.student.attention == doctest::Approx(kept.student.attention * 4 / 3));
  CHECK(recomputed.student.prototypes == kept.student.prototypes);
  CHECK(recomputed.teacher.total() == kept.teacher.total());
}

TEST_CASE("plan: images and patch embeddings grow with the channels, and 16-bit crops take half") {
  const train::Plan grey = train::plan(small({"--data.channels=1"}), 1),
                    six = train::plan(small({"--data.channels=6"}), 1);
  CHECK(six.memory.images == 6 * grey.memory.images);
  CHECK(six.memory.activations > grey.memory.activations);
  CHECK(six.student.patch_embedding == doctest::Approx(6 * grey.student.patch_embedding));
  CHECK(six.teacher.patch_embedding == doctest::Approx(6 * grey.teacher.patch_embedding));
  CHECK(six.student.qkv == grey.student.qkv);
  const train::Plan half = train::plan(small({"--data.channels=6", "--train.precision=bfloat16"}), 1);
  CHECK(2 * half.memory.images == six.memory.images);
  const train::TrainConfig bytes = small({"--data.channels=6", "--crops.finish_on_device=true"});
  const std::int64_t batches = 1 + bytes.loader.prefetch;
  CHECK(train::plan(bytes, 1).memory.images == six.memory.images / (4 * batches) * (batches + 4));
}

TEST_CASE("plan: a distilled teacher is held whole, and does its own work") {
  const auto config = small({"--student.drop_path_rate=0", "--distillation.checkpoint_path=teacher"});
  const auto large = small({"--student.embed_dim=768", "--student.num_heads=12"});
  const train::Plan alone = train::plan(config, 1), distilled = train::plan(config, 1, &large.network),
                    teacher = train::plan(large, 1);
  CHECK(distilled.memory.weights - alone.memory.weights == 4 * teacher.parameters());
  CHECK(distilled.memory.moments == alone.memory.moments);
  CHECK(train::plan(config, 2, &large.network).sent.teacher == 0);
  CHECK(distilled.teacher.qkv == teacher.teacher.qkv);
  CHECK(distilled.student.total() == alone.student.total());
  // iBOT compares all patches, not a mean of 0.15 of them.
  CHECK(alone.student.prototypes > 5 * train::plan(small(), 1).student.prototypes);
}

TEST_CASE("plan: the description names what the run needs") {
  const train::Plan plan = train::plan(small({"--ibot.separate_head=true"}), 1);
  const std::string text = train::describe(plan);
  for (const std::string& part :
       {std::string("125000 iterations of 4 images"),
        std::string("66.4 M: backbone 21.7 M, dino_head 22.4 M, ibot_head 22.4 M"),
        fmt::format("Memory of a rank, GB: {:.4g}", static_cast<double>(plan.memory.total()) * 1e-9),
        fmt::format("Checkpoint on disk, GB: {:.4g}", static_cast<double>(plan.checkpoint_bytes) * 1e-9)}) {
    CAPTURE(text);
    CHECK(text.find(part) != std::string::npos);
  }
}

TEST_CASE("plan: units send what is planned") {
  auto& world = testing::world();
  const auto config = read({"--student.arch=vit_tiny", "--student.depth=2", "--dino.head_n_prototypes=1024",
                            "--train.batch_size=8", "--train.batch_size_per_gpu=2"},
                           world.size());
  train::Network student(config.network), teacher(config.network);
  train::Units units(world, student, teacher, config.units);
  const std::int64_t before = world.traffic().bytes_sent;
  units.begin_gradients(true, true);
  units.finish_backward();
  units.update({}, {}, 1);
  units.wait_for_teacher();
  units.wait_for_student();
  const train::Plan::Sent sent = train::plan(config, world.size()).sent;
  // Up to the alignment of parameters.
  CHECK(static_cast<double>(world.traffic().bytes_sent - before) ==
        doctest::Approx(static_cast<double>(sent.gradients + sent.student + sent.teacher)).epsilon(1e-3));
}

TEST_CASE("the published configurations are read, and give the published runs") {
  struct Published {
    const char* name;
    int gpus;
    std::int64_t iterations, warmup;
    double lr;
    int embed_dim;
  };
  for (const Published& p : {Published{"vitl16_short", 32, 125000, 12500, 0.004 * std::sqrt(2), 1024},
                             {"vitl14", 96, 625000, 100000, 2e-4 * std::sqrt(3), 1024},
                             {"vitg14", 256, 625000, 100000, 2e-4 * std::sqrt(3), 1536},
                             {"vits14_distill", 32, 625000, 100000, 1e-3, 384},
                             {"vitb14_distill", 32, 625000, 100000, 1e-3, 768},
                             {"vitl14_distill", 32, 625000, 100000, 1e-3, 1024},
                             {"vitg14_highres518", 256, 10000, 1600, 1e-5 * std::sqrt(3), 1536}}) {
    CAPTURE(p.name);
    const auto file = testing::data_directory() / "../../configs/pretrain" / fmt::format("{}.cfg", p.name);
    core::Options options;
    data::declare_pixel_options(options);
    train::declare_options(options);
    options.parse({}, core::read_text(file), file.string());
    const train::TrainConfig config = train::read_config(options, p.gpus);
    CHECK(config.batch_size == p.gpus * config.group);
    CHECK(config.iterations == p.iterations);
    CHECK(config.warmup_iterations == p.warmup);
    CHECK(config.lr == doctest::Approx(p.lr));
    CHECK(config.network.backbone.embed_dim == p.embed_dim);
    CHECK(config.units.precision == train::Precision::float16);
  }
}

}  // namespace allosaur
