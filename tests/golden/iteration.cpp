// The production step against iterations of the official implementation (tests/data/golden/*/batch_*).
#include <algorithm>
#include <memory>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/files.hpp"
#include "io/safetensors.hpp"
#include "train/step.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using nlohmann::json;

train::NetworkConfig network_config(const json& config, const io::Safetensors& init) {
  train::NetworkConfig network;
  const json& student = config.at("student");
  model::VitConfig& vit = network.backbone;
  vit.image_size = config.at("crops").at("global_crops_size");
  vit.patch_size = student.at("patch_size");
  vit.embed_dim = static_cast<int>(init.find("student.backbone.norm.weight")->size(0));
  vit.num_heads = 2;
  vit.depth = 0;
  while (init.find(fmt::format("student.backbone.blocks.{}.norm1.weight", vit.depth)) != nullptr) ++vit.depth;
  vit.swiglu = student.at("ffn_layer") != "mlp";
  vit.num_register_tokens = student.at("num_register_tokens");
  vit.interpolate_antialias = student.at("interpolate_antialias");
  vit.interpolate_offset = student.at("interpolate_offset");
  const auto head = [&](const json& options) {
    model::HeadConfig h;
    h.in_dim = vit.embed_dim;
    h.hidden_dim = options.at("head_hidden_dim");
    h.bottleneck_dim = options.at("head_bottleneck_dim");
    h.layers = options.at("head_nlayers");
    h.prototypes = options.at("head_n_prototypes");
    return h;
  };
  network.dino_head = head(config.at("dino"));
  network.ibot_head = head(config.at("ibot"));
  network.separate_ibot_head = config.at("ibot").at("separate_head");
  return network;
}

void fill(train::Network& network, const std::string& prefix, const io::Safetensors& state) {
  for (const train::NetworkParameter& p : network.parameters())
    p.parameter.tensor->copy_(state.find(prefix + p.name())->view_as(*p.parameter.tensor));
}

/// Recorded subsets come per block as attention global, attention local, ffn global, ffn local.
void read_kept(train::StepInput& input, const io::Safetensors& batch) {
  for (int i = 0;; ++i) {
    const at::Tensor* kept = batch.find(fmt::format("brange_{:04}", i));
    if (kept == nullptr) return;
    (i % 2 == 0 ? input.kept_global : input.kept_local).push_back(*kept);
  }
}

void near(double ours, double theirs, double tolerance) { CHECK(std::abs(ours - theirs) <= tolerance * std::abs(theirs)); }

void compare(const std::string& fixture) {
  const auto folder = testing::data_directory() / "golden" / fixture;
  const json meta = json::parse(core::read_text(folder / "meta.json"));
  const json& config = meta.at("config");
  const io::Safetensors init = io::read_safetensors(folder / "init.safetensors");

  const train::NetworkConfig network = network_config(config, init);
  train::Network student(network), teacher(network);
  fill(student, "student.", init);
  fill(teacher, "teacher.", init);
  train::OptimizerConfig optimizer;
  optimizer.clip_grad = config.at("optim").at("clip_grad");
  optimizer.layerwise_decay = config.at("optim").at("layerwise_decay");
  optimizer.patch_embed_lr_mult = config.at("optim").at("patch_embed_lr_mult");
  train::ObjectiveConfig objective;
  objective.centering = config.at("train").at("centering") == "centering" ? train::Centering::softmax
                                                                          : train::Centering::sinkhorn_knopp;
  train::Units units(testing::world(), student, teacher, optimizer);
  train::Trainer trainer(testing::world(), student, teacher, units, objective, optimizer);
  if (objective.centering == train::Centering::softmax) {
    const auto restore = [&](loss::Center& center, const char* name) {
      const at::Tensor value = init.find(name)->flatten();
      center.restore(at::stack({value, at::full_like(value, std::numeric_limits<double>::quiet_NaN())}));
    };
    restore(trainer.centers().dino, "dino_loss.center");
    restore(trainer.centers().ibot, "ibot_patch_loss.center");
  }

  const auto iterations = static_cast<int>(meta.at("iterations").size());
  for (int i = 0; i < iterations; ++i) {
    CAPTURE(i);
    const json& theirs = meta.at("iterations").at(static_cast<std::size_t>(i));
    const io::Safetensors batch = io::read_safetensors(folder / fmt::format("batch_{:04}.safetensors", i));
    train::StepInput input;
    input.global_crops = *batch.find("collated_global_crops");
    input.local_crops = *batch.find("collated_local_crops");
    input.masks = batch.find("collated_masks")->to(at::kBool);
    read_kept(input, batch);
    input.group = input.global_crops.size(0) / 2;
    input.update = i + 1;
    input.schedule = {theirs.at("lr"), theirs.at("wd"), theirs.at("mom"), theirs.at("teacher_temp"), theirs.at("last_layer_lr")};
    const train::StepResult ours = trainer.run(input);
    const json& losses = theirs.at("losses");
    near(ours.dino_local, losses.at("dino_local_crops_loss"), 1e-5);
    near(ours.dino_global, losses.at("dino_global_crops_loss"), 1e-5);
    near(ours.ibot, 2 * losses.at("ibot_loss").get<double>(), 1e-5);  // displayed at half their value
    near(objective.koleo_weight * ours.koleo, 2 * losses.at("koleo_loss").get<double>(), 1e-5);
    near(ours.total, theirs.at("total_loss"), 1e-5);
    const json& norms = theirs.at("clip_norms");
    near(ours.gradient_norm[0], norms.at("backbone"), 1e-4);
    near(ours.gradient_norm[1], norms.at("dino_head"), 1e-4);
    if (network.separate_ibot_head) near(ours.gradient_norm[2], norms.at("ibot_head"), 1e-4);

    if (i > 0) continue;
    const io::Safetensors gradients = io::read_safetensors(folder / "grads_0000.safetensors");
    for (const train::NetworkParameter& p : student.parameters()) {
      CAPTURE(p.name());
      const at::Tensor* expected = gradients.find(p.name());
      if (expected == nullptr) continue;
      // The buffers hold the clipped gradient by now.
      const double norm = ours.gradient_norm[static_cast<std::size_t>(p.submodule)];
      const at::Tensor gradient = p.parameter.tensor->grad() / std::min(1.0, optimizer.clip_grad / (norm + 1e-6));
      const double difference = (gradient - expected->view_as(gradient)).norm().item<double>();
      // Key biases have no gradient mathematically: rounding noise is compared with the scale of the module.
      CHECK(difference <= 1e-4 * expected->norm().item<double>() + 1e-6 * norm);
    }
  }

  // The change of every parameter, not its value: an absolute comparison would pass without an optimiser.
  const io::Safetensors final_state = io::read_safetensors(folder / fmt::format("state_{:04}.safetensors", iterations));
  units.wait_for_weights();
  for (const auto& [module, prefix] : {std::pair{&student, "student."}, std::pair{&teacher, "teacher."}})
    for (const train::NetworkParameter& p : module->parameters()) {
      const std::string name = prefix + p.name();
      CAPTURE(name);
      const at::Tensor before = *init.find(name), expected = *final_state.find(name) - before;
      const at::Tensor change = p.parameter.tensor->detach().view_as(before) - before;
      const double scale = expected.norm().item<double>();
      // AdamW's first steps divide small numbers by small numbers, and the teacher's change drowns in its own rounding.
      const double rounding = 1e-7 * before.norm().item<double>();
      CHECK((change - expected).norm().item<double>() <= 0.02 * scale + 2 * rounding);
    }
  if (objective.centering == train::Centering::softmax) {
    const at::Tensor expected = final_state.find("dino_loss.center")->flatten();
    CHECK((trainer.centers().dino.state()[0] - expected).norm().item<double>() <= 1e-5 * expected.norm().item<double>());
  }
}

TEST_CASE("iterations equal the official ones: softmax centring, shared head, MLP") { compare("centering_shared_mlp"); }
TEST_CASE("iterations equal the official ones: Sinkhorn-Knopp, separate heads, SwiGLU, stochastic depth") {
  compare("sinkhorn_separate_swiglu");
}

}  // namespace
}  // namespace allosaur
