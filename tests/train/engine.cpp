// One iteration of the engine on synthetic crops: what must not depend on ranks, micro-batches or recomputation, and
// what happens when numbers are not finite.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#ifdef ALLOSAUR_HAVE_CUDA
#include "comm/nccl_communicator.hpp"
#endif
#include "core/random.hpp"
#include "devices.hpp"
#include "testing.hpp"
#include "train/step.hpp"

namespace allosaur {
namespace {

constexpr std::int64_t kImages = 8, kGroup = 2, kLocals = 3, kSide = 16, kLocalSide = 8, kPatches = 16;

train::NetworkConfig small_network() {
  train::NetworkConfig network;
  network.backbone = {
      .image_size = kSide, .patch_size = 4, .embed_dim = 24, .depth = 3, .num_heads = 3, .layer_scale = 0.5};
  network.dino_head = {.in_dim = 24, .hidden_dim = 32, .bottleneck_dim = 8, .layers = 3, .prototypes = 40};
  network.ibot_head = network.dino_head;
  network.separate_ibot_head = true;
  return network;
}

/// Noise that depends on the image and the crop only, whichever rank asks.
at::Tensor crops(std::int64_t first, std::int64_t images, std::int64_t count, std::int64_t side, std::uint32_t stream) {
  at::Tensor all = at::empty({count * images, 3, side, side});
  for (std::int64_t crop = 0; crop < count; ++crop)
    for (std::int64_t i = 0; i < images; ++i) {
      core::Random random(1, core::Purpose::demo, static_cast<std::uint64_t>((first + i) * 100 + crop), stream);
      at::Tensor one = all[crop * images + i].flatten();
      for (std::int64_t k = 0; k < one.numel(); ++k) one.data_ptr<float>()[k] = static_cast<float>(random.normal());
    }
  return all;
}

/// Images [first, first + images) of the global batch.
train::MicroBatch micro_batch(std::int64_t first, std::int64_t images, double drop_rate) {
  train::MicroBatch batch;
  batch.global_crops = crops(first, images, 2, kSide, 0);
  batch.local_crops = crops(first, images, kLocals, kLocalSide, 1);
  batch.masks = crops(first, images, 2, kSide, 2).flatten(1).narrow(1, 0, kPatches) > 0.6;
  const std::vector<double> rates(3, drop_rate);
  batch.kept_global = train::kept_rows(rates, {images, 2, kGroup, first / kGroup}, 7, 0);
  batch.kept_local = train::kept_rows(rates, {images, kLocals, kGroup, first / kGroup}, 7, 1);
  return batch;
}

struct Engine {
  explicit Engine(comm::Communicator& ranks, const train::UnitsConfig& config = {}, bool recompute = false,
                  train::Centering centering = train::Centering::sinkhorn_knopp, comm::Communicator* data = nullptr)
      : group(ranks), device(config.device), student(network(recompute)), teacher(network(recompute)) {
    for (train::Network* n : {&student, &teacher})
      for (const train::NetworkParameter& p : n->parameters()) {
        model::initialise(p.parameter, p.prefix, 3);
        // In heads this narrow the published deviation leaves embeddings of 1e-3, whose normalisation blows up
        // gradients.
        if (p.parameter.name.starts_with("mlp.")) p.parameter.tensor->mul_(10);
      }
    if (data == nullptr) data = &group;
    units = std::make_unique<train::Units>(*data, student, teacher, config);
    train::ObjectiveConfig objective;
    objective.centering = centering;
    trainer = std::make_unique<train::Trainer>(group, *data, student, teacher, *units, objective, config);
  }
  static train::NetworkConfig network(bool recompute) {
    train::NetworkConfig config = small_network();
    config.checkpoint_activations = recompute;
    return config;
  }

  /// This rank's share of the global batch in `passes` micro-batches.
  train::StepInput input(int passes = 1, double drop_rate = 0.4) const {
    train::StepInput step;
    step.group = kGroup;
    step.schedule = {
        .lr = 0.01, .weight_decay = 0.1, .momentum = 0.9, .teacher_temperature = 0.05, .last_layer_lr = 0.01};
    step.statistics = true;
    const std::int64_t share = kImages / group.size(), size = share / passes;
    for (int i = 0; i < passes; ++i) {
      train::MicroBatch& batch =
          step.batches.emplace_back(micro_batch(group.rank() * share + i * size, size, drop_rate));
      batch.global_crops = batch.global_crops.to(device);
      batch.local_crops = batch.local_crops.to(device);
    }
    return step;
  }

  /// Every weight of student and teacher.
  at::Tensor weights() {
    const at::NoGradGuard no_grad;
    units->wait_for_teacher();
    units->wait_for_student();
    std::vector<at::Tensor> all;
    for (train::Network* n : {&student, &teacher})
      for (const train::NetworkParameter& p : n->parameters())
        all.push_back(p.parameter.tensor->detach().flatten().cpu().to(at::kDouble));
    return at::cat(all);
  }

  comm::Communicator& group;
  at::Device device;
  train::Network student, teacher;
  std::unique_ptr<train::Units> units;
  std::unique_ptr<train::Trainer> trainer;
};

double distance(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

TEST_CASE("losses and updates do not depend on the number of ranks or micro-batches") {
  auto& world = testing::world();
  const auto alone = world.split(world.rank(), 0);
  for (const auto centering : {train::Centering::sinkhorn_knopp, train::Centering::softmax}) {
    Engine reference(*alone, {}, false, centering);
    const at::Tensor before = reference.weights();
    Engine together(world, {}, false, centering);
    train::UnitsConfig accumulate;
    accumulate.accumulate = true;
    Engine split(*alone, accumulate, false, centering);
    for (int i = 0; i < 3; ++i) {
      const train::StepResult expected = reference.trainer->run(reference.input());
      for (const train::StepResult& ours :
           {together.trainer->run(together.input()), split.trainer->run(split.input(2))}) {
        CHECK(ours.verdict == train::StepVerdict::updated);
        CHECK(ours.dino_local == doctest::Approx(expected.dino_local).epsilon(1e-5));
        CHECK(ours.dino_global == doctest::Approx(expected.dino_global).epsilon(1e-5));
        CHECK(ours.ibot == doctest::Approx(expected.ibot).epsilon(1e-5));
        CHECK(ours.koleo == doctest::Approx(expected.koleo).epsilon(1e-5));
        CHECK(ours.gradient_norm[0] == doctest::Approx(expected.gradient_norm[0]).epsilon(1e-4));
      }
    }
    const at::Tensor change = reference.weights() - before;
    CHECK(change.norm().item<double>() > 0.01);
    CHECK(distance(together.weights() - before, change) < 1e-3);
    CHECK(distance(split.weights() - before, change) < 1e-3);
  }
}

TEST_CASE("an iteration without masked patches, on one rank or on all, trains the rest") {
  auto& world = testing::world();
  for (const auto centering : {train::Centering::sinkhorn_knopp, train::Centering::softmax})
    for (const bool everywhere : {false, true}) {
      Engine engine(world, {}, false, centering);
      const at::Tensor before = engine.weights();
      train::StepResult result;
      for (int i = 0; i < 2; ++i) {
        train::StepInput input = engine.input();
        if (everywhere || world.rank() == 0) input.batches[0].masks.fill_(false);
        result = engine.trainer->run(input);
        CHECK(result.verdict == train::StepVerdict::updated);
      }
      CHECK((result.ibot == 0) == (everywhere || world.size() == 1));
      CHECK(result.dino_global > 0);
      CHECK(at::isfinite(engine.weights()).all().item<bool>());
      CHECK(distance(engine.weights(), before) > 0);
    }
}

#ifdef ALLOSAUR_HAVE_CUDA
TEST_CASE("iterations on a GPU are those on a CPU") {
  auto& world = testing::world();
  if (testing::devices().size() < 2 || world.size() > 1) {
    if (world.rank() == 0) MESSAGE("skipped: needs one rank and a CUDA device");
    return;
  }
  comm::NcclCommunicator nccl(world, 0);
  for (const auto centering : {train::Centering::sinkhorn_knopp, train::Centering::softmax}) {
    Engine host(world, {}, false, centering);
    train::UnitsConfig config;
    config.device = testing::devices().back();
    Engine device(world, config, false, centering, &nccl);
    const at::Tensor before = host.weights();
    CHECK(at::equal(before, device.weights()));
    for (int i = 0; i < 3; ++i) {
      const train::StepResult expected = host.trainer->run(host.input()), ours = device.trainer->run(device.input());
      CHECK(ours.total == doctest::Approx(expected.total).epsilon(1e-4));
      CHECK(ours.gradient_norm[0] == doctest::Approx(expected.gradient_norm[0]).epsilon(1e-3));
    }
    CHECK(distance(device.weights() - before, host.weights() - before) < 1e-2);

    config.precision = train::Precision::float16;
    Engine exact(world, {}, false, centering), half(world, config, false, centering, &nccl);
    half.trainer->state().loss_scale = 1024;  // that has settled
    for (int i = 0; i < 3; ++i) {
      const train::StepResult expected = exact.trainer->run(exact.input()), ours = half.trainer->run(half.input());
      CHECK(ours.verdict == train::StepVerdict::updated);
      CHECK(ours.total == doctest::Approx(expected.total).epsilon(0.03));
    }
  }
}
#endif

/// The most bytes that tensors take at once on the CPU, beyond those there before.
struct TensorMemory final : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void* /*address*/, std::int64_t bytes, std::size_t /*allocated*/, std::size_t /*reserved*/,
                         c10::Device /*device*/) override {
    now += bytes;
    peak = std::max(peak, now);
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t now = 0, peak = 0;
};

TEST_CASE("recomputing activations changes nothing but the memory they take") {
  Engine plain(testing::world()), recomputing(testing::world(), {}, true);
  const auto peak = [](Engine& engine) {
    const train::StepInput input = engine.input();
    const auto memory = std::make_shared<TensorMemory>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
    engine.trainer->run(input);
    return static_cast<double>(memory->peak);
  };
  for (int i = 0; i < 2; ++i) {
    const double kept = peak(plain), recomputed = peak(recomputing);
    CHECK(recomputed > 0);
    CHECK(recomputed < 0.9 * kept);
  }
  CHECK(at::equal(plain.weights(), recomputing.weights()));
}

TEST_CASE("bfloat16 and float16 train like float32, up to their rounding") {
  Engine exact(testing::world());
  const at::Tensor before = exact.weights();
  const auto losses = [](Engine& engine, int passes) {
    std::vector<double> all;
    for (int i = 0; i < 6; ++i) {
      const train::StepResult step = engine.trainer->run(engine.input(passes));
      CHECK(step.verdict == train::StepVerdict::updated);
      all.push_back(step.total);
    }
    return all;
  };
  const std::vector<double> expected = losses(exact, 1);
  CHECK(expected.back() < expected.front());
  const at::Tensor change = exact.weights() - before;
  const int passes = testing::world().size() == 1 ? 2 : 1;
  for (const auto precision : {train::Precision::bfloat16, train::Precision::float16}) {
    CAPTURE(train::name_of(precision));
    train::UnitsConfig config;
    config.precision = precision;
    config.accumulate = passes > 1;
    Engine rounded(testing::world(), config);
    if (precision == train::Precision::float16) rounded.trainer->state().loss_scale = 1024;  // that has settled
    const std::vector<double> ours = losses(rounded, passes);
    for (std::size_t i = 0; i < ours.size(); ++i) CHECK(ours[i] == doctest::Approx(expected[i]).epsilon(0.03));
    // Masters and EMA are float32: the change is the same to a few per cent, where the weights alone would round it
    // off.
    at::Tensor cosine = at::dot(rounded.weights() - before, change);
    cosine /= (rounded.weights() - before).norm() * change.norm();
    CHECK(cosine.item<double>() > 0.9);
  }
}

TEST_CASE("float16: an overflow halves the loss scale and updates the teacher only; the next iteration goes on") {
  train::UnitsConfig config;
  config.precision = train::Precision::float16;
  Engine engine(testing::world(), config);
  engine.trainer->state().loss_scale = 1e9;                      // gradients beyond 65504
  const auto parts = [&] { return engine.weights().chunk(2); };  // student, teacher
  {
    const at::NoGradGuard no_grad;
    for (const train::NetworkParameter& p : engine.student.parameters()) p.parameter.tensor->mul_(1.25);
  }
  for (const auto& slice : engine.units->slices())
    if (slice.name.starts_with("student.")) slice.values.mul_(1.25);
  const auto before = parts();
  int overflows = 0;
  while (engine.trainer->run(engine.input()).verdict == train::StepVerdict::overflowed && overflows < 40) {
    ++overflows;
    CHECK(engine.trainer->state().loss_scale == 1e9 / std::pow(2, overflows));
    CHECK(at::equal(parts()[0], before[0]));
    const double share = 0.25 * (1 - std::pow(0.9, overflows));  // of the student in the teacher
    CHECK(distance(parts()[1], before[1] * (1 + share)) < 1e-3);
    CHECK(engine.trainer->state().updates == 0);
  }
  CHECK(overflows > 0);
  CHECK(overflows < 40);
  CHECK(engine.trainer->state().updates == 1);
  CHECK_FALSE(at::equal(parts()[0], before[0]));
}

TEST_CASE("float16: gradients that overflow on one rank update the student on none") {
  auto& world = testing::world();
  train::UnitsConfig config;
  config.precision = train::Precision::float16;
  Engine engine(world, config);
  engine.trainer->state().loss_scale = 1024;
  CHECK(engine.trainer->run(engine.input()).verdict == train::StepVerdict::updated);
  const at::Tensor before = engine.weights().chunk(2)[0];
  const at::Tensor parameter = *engine.student.parameters().front().parameter.tensor;
  const unsigned hook = parameter.register_hook([&](const at::Tensor& gradient) {
    return world.rank() == world.size() - 1 ? at::full_like(gradient, std::numeric_limits<double>::infinity())
                                            : gradient;
  });
  CHECK(engine.trainer->run(engine.input()).verdict == train::StepVerdict::overflowed);
  CHECK(engine.trainer->state().loss_scale == 512);
  CHECK(at::equal(engine.weights().chunk(2)[0], before));
  parameter.remove_hook(hook);
  CHECK(engine.trainer->run(engine.input()).verdict == train::StepVerdict::updated);
}

TEST_CASE("a loss that is not finite on one rank updates nothing on any") {
  Engine engine(testing::world(), {}, false, train::Centering::softmax);
  engine.trainer->run(engine.input());
  const at::Tensor before = engine.weights(), center = engine.trainer->state().dino.state();
  train::StepInput input = engine.input();
  if (testing::world().rank() == testing::world().size() - 1)
    input.batches[0].global_crops[0].fill_(std::numeric_limits<float>::quiet_NaN());
  CHECK(engine.trainer->run(input).verdict == train::StepVerdict::not_finite);
  CHECK(at::equal(engine.weights(), before));
  CHECK(at::equal(engine.trainer->state().dino.state().nan_to_num(), center.nan_to_num()));
  CHECK(engine.trainer->state().updates == 1);
  CHECK(engine.trainer->run(engine.input()).verdict == train::StepVerdict::updated);
}

TEST_CASE("a backbone's forward waits for the weights of an update, which one rank sends late") {
  auto& world = testing::world();
  Engine engine(world);
  const train::StepInput input = engine.input();
  engine.trainer->run(input);
  const at::Tensor images = input.batches[0].global_crops;
  const auto patches = [&](train::Network& network) {
    const at::NoGradGuard no_grad;
    return network.backbone().forward(images).patches;
  };
  for (train::Network* network : {&engine.student, &engine.teacher}) {
    const at::Tensor old = patches(*network);
    engine.units->begin_gradients(true, true);
    engine.units->finish_backward();
    if (world.rank() == world.size() - 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    engine.units->update(input.schedule, {1, 1, 1}, engine.trainer->state().updates + 1);
    const at::Tensor at_once = patches(*network);
    engine.weights();  // waits for all
    CHECK(at::equal(at_once, patches(*network)));
    CHECK_FALSE(at::equal(at_once, old));
  }
}

TEST_CASE("a frozen teacher's targets are those of its own outputs, for all patches of crops that are not masked") {
  auto& world = testing::world();
  Engine engine(world);
  train::Network frozen(small_network());
  for (const train::NetworkParameter& p : frozen.parameters()) {
    model::initialise(p.parameter, p.prefix, 11);  // another seed than the EMA's
    if (p.parameter.name.starts_with("mlp.")) p.parameter.tensor->mul_(10);
  }
  train::ObjectiveConfig objective;
  objective.mask_input = false;
  train::Trainer trainer(world, world, engine.student, frozen, *engine.units, objective, {});
  train::StepInput input = engine.input(1, /*drop_rate=*/0);
  train::MicroBatch& batch = input.batches[0];
  batch.masks.fill_(true);

  const at::NoGradGuard no_grad;
  const auto logits = [](const model::ProjectionHead& head, const at::Tensor& tokens) {
    const at::Tensor embedding = head.embed(tokens);
    return at::mm(embedding, head.prototypes().effective(at::kFloat).t());
  };
  // Centres are zero at the start.
  const auto cross_entropy = [&](const at::Tensor& teacher, const at::Tensor& student) {
    const at::Tensor targets = at::softmax(teacher / input.schedule.teacher_temperature, 1);
    return -(targets * at::log_softmax(student / objective.student_temperature, 1)).sum(1).mean().item<double>();
  };
  const model::VitOutput teacher = frozen.backbone().forward(batch.global_crops),
                         student = engine.student.backbone().forward(batch.global_crops);
  const at::Tensor swapped = teacher.cls.roll({teacher.cls.size(0) / 2}, {0});
  const double ibot = cross_entropy(logits(frozen.ibot_head(), teacher.patches.flatten(0, 1)),
                                    logits(engine.student.ibot_head(), student.patches.flatten(0, 1))),
               global =
                   cross_entropy(logits(frozen.dino_head(), swapped), logits(engine.student.dino_head(), student.cls));
  const double ranks = world.size();
  train::StepResult result;
  {
    const at::AutoGradMode with_gradients(true);
    result = trainer.run(input);
  }
  CHECK(result.ibot == doctest::Approx(world.sum(ibot) / ranks).epsilon(1e-5));
  const double pairs = 2 + 2 * kLocals;  // a global crop has one of them
  CHECK(result.dino_global == doctest::Approx(world.sum(global) / ranks * 2 / pairs).epsilon(1e-5));
}

TEST_CASE("an EMA that does not teach is gathered when it is asked for") {
  auto& world = testing::world();
  train::Network frozen(small_network());
  for (const train::NetworkParameter& p : frozen.parameters()) model::initialise(p.parameter, p.prefix, 11);
  const auto run = [&](bool ema_teaches) {
    train::UnitsConfig config;
    config.ema_teaches = ema_teaches;
    Engine engine(world, config);
    train::Trainer trainer(world, world, engine.student, frozen, *engine.units, {}, config);
    const std::int64_t sent = world.traffic().bytes_sent;
    for (int i = 0; i < 3; ++i) trainer.run(engine.input());
    engine.units->wait_for_student();
    return std::pair{world.traffic().bytes_sent - sent, engine.weights()};
  };
  const auto [at_once, expected] = run(true);
  const auto [late, weights] = run(false);
  CHECK(at::equal(weights, expected));
  CHECK((world.size() == 1 ? late == at_once : late < at_once));
}

TEST_CASE("optimiser state is shared out, and the bytes sent are those of the formula") {
  auto& world = testing::world();
  const std::int64_t ranks = world.size();
  for (const auto precision : {train::Precision::float32, train::Precision::bfloat16}) {
    CAPTURE(train::name_of(precision));
    train::UnitsConfig config;
    config.precision = precision;
    Engine engine(world, config);
    std::int64_t mine = 0, all = 0, heads = 0;
    for (const train::Units::Slice& slice : engine.units->slices()) {
      if (!slice.name.starts_with("exp_avg.")) continue;
      mine += slice.values.numel();
      all += slice.total;
      if (slice.name.find("head") != std::string::npos) heads += slice.total;
    }
    CHECK(world.sum(mine) == all);
    CHECK(mine <= (all + 32 * ranks) / ranks + 64);

    const std::int64_t sent = world.traffic().bytes_sent;
    train::StepInput input = engine.input();
    engine.trainer->run(input);
    engine.weights();
    const std::int64_t bytes = precision == train::Precision::float32 ? 4 : 2;
    const auto share = [&](std::int64_t n) { return n * (ranks - 1) / ranks; };
    // Gradients (heads in float32), student, teacher; 2 x 3 x 2 vectors over prototypes of Sinkhorn-Knopp; the losses.
    const std::int64_t expected =
        share((all - heads) * bytes + heads * 4 + 2 * all * bytes) + 2 * share(12 * 40 * 4) + 2 * share(9 * 8);
    const auto difference = static_cast<double>(world.traffic().bytes_sent - sent - expected);
    CHECK(std::abs(difference) <= 0.02 * static_cast<double>(expected));  // units are padded to a multiple of ranks
  }
}

}  // namespace
}  // namespace allosaur
