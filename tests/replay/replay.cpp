#include "replay/replay.hpp"

#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <regex>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "io/safetensors.hpp"
#include "train/step.hpp"

namespace allosaur::testing {
namespace {

using nlohmann::json;

constexpr double kFeatures = 1e-5, kLosses = 1e-5, kGradients = 1e-4, kCenters = 1e-5;
// AdamW's first steps divide small numbers by small numbers.
constexpr double kChange = 0.005;

const at::Tensor& need(const io::Safetensors& file, const std::string& name, const std::filesystem::path& folder) {
  const at::Tensor* tensor = file.find(name);
  if (tensor == nullptr) throw core::InputError(fmt::format("{} holds no tensor {}.", folder.string(), name));
  return *tensor;
}

/// The name without blocks in chunks: "blocks.<chunk>.<block>." becomes "blocks.<block>.", which counts all blocks
/// (facts 1.6).
std::string without_chunk(const std::string& name) {
  static const std::regex chunked("blocks\\.[0-9]+\\.([0-9]+)\\.");
  return std::regex_replace(name, chunked, "blocks.$1.");
}

io::Safetensors read_tensors(const std::filesystem::path& file) {
  io::Safetensors read = io::read_safetensors(file);
  for (auto& [name, tensor] : read.tensors) name = without_chunk(name);
  return read;
}

std::optional<io::Safetensors> read_if_there(const std::filesystem::path& folder, const char* kind, int number) {
  const auto file = folder / fmt::format("{}_{:04}.safetensors", kind, number);
  if (!exists(file)) return std::nullopt;
  return read_tensors(file);
}

int heads_of(const json& student, int embed_dim) {
  if (student.contains("num_heads")) return student.at("num_heads");
  std::string arch = student.at("arch");
  if (arch.ends_with("_memeff")) arch.resize(arch.size() - 7);
  for (const std::string& name : model::vit_presets())
    if (arch == name) return model::vit_preset(name).num_heads;
  return embed_dim / 32;  // the tiny networks that exist for such recordings only
}

/// The rate of stochastic depth of each block (facts 1.2).
std::vector<double> drop_rates(const json& student, int depth) {
  const double rate = student.at("drop_path_rate");
  std::vector<double> rates(static_cast<std::size_t>(depth), rate);
  if (!student.value("drop_path_uniform", true))
    for (int i = 0; i < depth; ++i) rates[static_cast<std::size_t>(i)] = depth == 1 ? 0 : rate * i / (depth - 1);
  return rates;
}

train::NetworkConfig network_config(const json& config, const io::Safetensors& init,
                                    const std::filesystem::path& folder) {
  train::NetworkConfig network;
  const json& student = config.at("student");
  const auto shape = [&](const std::string& name) { return need(init, "student.backbone." + name, folder).sizes(); };
  model::VitConfig& vit = network.backbone;
  vit.image_size = config.at("crops").at("global_crops_size");
  vit.patch_size = student.at("patch_size");
  vit.embed_dim = static_cast<int>(shape("norm.weight")[0]);
  vit.num_heads = heads_of(student, vit.embed_dim);
  vit.depth = 0;
  while (init.find(fmt::format("student.backbone.blocks.{}.norm1.weight", vit.depth)) != nullptr) ++vit.depth;
  vit.swiglu = init.find("student.backbone.blocks.0.mlp.w12.weight") != nullptr;
  if (!vit.swiglu) vit.mlp_ratio = static_cast<double>(shape("blocks.0.mlp.fc1.weight")[0]) / vit.embed_dim;
  vit.layer_scale = init.find("student.backbone.blocks.0.ls1.gamma") != nullptr ? 1 : 0;
  vit.num_register_tokens = student.at("num_register_tokens");
  vit.interpolate_antialias = student.at("interpolate_antialias");
  vit.interpolate_offset = student.at("interpolate_offset");
  const auto head = [&](const json& options) {
    return model::HeadConfig{.in_dim = vit.embed_dim,
                             .hidden_dim = options.at("head_hidden_dim"),
                             .bottleneck_dim = options.at("head_bottleneck_dim"),
                             .layers = options.at("head_nlayers"),
                             .prototypes = options.at("head_n_prototypes")};
  };
  network.dino_head = head(config.at("dino"));
  network.ibot_head = head(config.at("ibot"));
  // A head that no loss reaches was not built.
  network.separate_ibot_head = init.find("student.ibot_head.last_layer.weight_v") != nullptr;
  return network;
}

bool has_key_bias(const std::string& name) {
  return name.ends_with("attn.qkv.bias");
}

/// The part of a parameter that has a gradient mathematically: not the key biases, whose change is rounding noise that
/// AdamW blows up.
at::Tensor moving(const std::string& name, const at::Tensor& values) {
  if (!has_key_bias(name)) return values;
  const auto parts = values.chunk(3);
  return at::cat({parts[0], parts[2]});
}

/// What two numbers differ by, relative to the second beyond `floor`.
double relative(double difference, double theirs, double floor = 0) {
  return difference == 0 ? 0 : difference / (theirs + floor);
}

/// The recorded run, rebuilt from production parts.
class Run {
 public:
  Run(comm::Communicator& group, const std::filesystem::path& folder,
      const std::function<void(const Quantity&)>& report)
      : folder_(folder),
        report_(report),
        meta_(json::parse(core::read_text(folder / "meta.json"))),
        init_(read_tensors(folder / "init.safetensors")),
        student_(network_config(meta_.at("config"), init_, folder)),
        teacher_(student_.config()) {
    const json& config = meta_.at("config");
    fill(student_, "student.");
    fill(teacher_, "teacher.");
    train::UnitsConfig units;
    units.optimizer.clip_grad = config.at("optim").at("clip_grad");
    units.optimizer.layerwise_decay = config.at("optim").at("layerwise_decay");
    units.optimizer.patch_embed_lr_mult = config.at("optim").at("patch_embed_lr_mult");
    units.optimizer.beta1 = config.at("optim").at("adamw_beta1");
    units.optimizer.beta2 = config.at("optim").at("adamw_beta2");
    objective_.dino_weight = config.at("dino").at("loss_weight");
    objective_.ibot_weight = config.at("ibot").at("loss_weight");
    objective_.koleo_weight = config.at("dino").at("koleo_loss_weight");
    if (config.at("train").at("centering") != "centering") objective_.centering = train::Centering::sinkhorn_knopp;
    units_ = std::make_unique<train::Units>(group, student_, teacher_, units);
    trainer_ = std::make_unique<train::Trainer>(group, group, student_, teacher_, *units_, objective_, units);
    if (objective_.centering == train::Centering::softmax) {
      restore(trainer_->state().dino, "dino_loss.center");
      restore(trainer_->state().ibot, "ibot_patch_loss.center");
    }
  }

  /// False when the iteration is not recorded.
  bool iteration(int number) {
    if (number >= static_cast<int>(meta_.at("iterations").size())) return false;
    const std::optional<io::Safetensors> batch = read_if_there(folder_, "batch", number);
    if (!batch) return false;
    const json& theirs = meta_.at("iterations").at(static_cast<std::size_t>(number));
    train::StepInput input;
    train::MicroBatch& micro = input.batches.emplace_back();
    micro.global_crops = need(*batch, "collated_global_crops", folder_);
    micro.local_crops = need(*batch, "collated_local_crops", folder_);
    micro.masks = need(*batch, "collated_masks", folder_).to(at::kBool);
    subsets(*batch, micro);
    input.group = micro.global_crops.size(0) / 2;
    input.schedule = {theirs.at("lr"), theirs.at("wd"), theirs.at("mom"), theirs.at("teacher_temp"),
                      theirs.at("last_layer_lr")};
    features(micro, number);
    const train::StepResult ours = trainer_->run(input);
    losses(ours, theirs, number);
    gradients(ours, theirs, number);
    changes(number + 1);
    return true;
  }

 private:
  void fill(train::Network& network, const std::string& prefix) {
    for (const train::NetworkParameter& p : network.parameters())
      p.parameter.tensor->copy_(need(init_, prefix + p.name(), folder_).view_as(*p.parameter.tensor));
  }

  /// Recorded subsets come per block as attention global, attention local, ffn global, ffn local; a block that never
  /// drops records none, and keeps all.
  void subsets(const io::Safetensors& batch, train::MicroBatch& micro) const {
    if (batch.find("brange_0000") == nullptr) return;
    int next = 0;
    for (const double rate : drop_rates(meta_.at("config").at("student"), student_.config().backbone.depth))
      for (int branch = 0; branch < 2; ++branch)
        for (std::vector<at::Tensor>* kept : {&micro.kept_global, &micro.kept_local})
          kept->push_back(rate == 0 ? at::Tensor() : need(batch, fmt::format("brange_{:04}", next++), folder_));
  }

  void restore(loss::Center& center, const char* name) {
    const at::Tensor value = need(init_, name, folder_).flatten();
    center.restore(at::stack({value, at::full_like(value, std::numeric_limits<double>::quiet_NaN())}));
  }

  void number(const char* kind, int iteration, const std::string& name, double ours, double theirs, double tolerance) {
    report_({kind, fmt::format("{} [{}]", name, iteration), ours, theirs,
             relative(std::abs(ours - theirs), std::abs(theirs)), tolerance});
  }

  /// `floor`: a norm below which differences count as absolute.
  void tensor(const char* kind, int iteration, const std::string& name, const at::Tensor& ours,
              const at::Tensor& theirs, double tolerance, double floor = 0) {
    const auto norm = [](const at::Tensor& x) { return x.norm(2, at::kDouble).item<double>(); };
    const at::Tensor expected = theirs.view_as(ours);
    report_({kind, fmt::format("{} [{}]", name, iteration), norm(ours), norm(expected),
             relative(norm(ours - expected), norm(expected), floor), tolerance});
  }

  void features(const train::MicroBatch& micro, int iteration) {
    const std::optional<io::Safetensors> recorded = read_if_there(folder_, "acts", iteration);
    if (!recorded) return;
    const at::NoGradGuard no_grad;
    units_->wait_for_teacher();
    units_->wait_for_student();
    const auto compare = [&](const std::string& network, const model::VitOutput& ours) {
      for (const auto& [what, values] : {std::pair{"clstoken", ours.cls}, std::pair{"patchtokens", ours.patches}})
        if (const at::Tensor* theirs = recorded->find(fmt::format("{}.x_norm_{}", network, what)))
          tensor("feature", iteration, fmt::format("{}.{}", network, what), values, *theirs, kFeatures);
    };
    const auto student = student_.backbone().forward_packed(
        {{micro.global_crops, micro.masks, micro.kept_global, {}}, {micro.local_crops, {}, micro.kept_local, {}}});
    compare("student.backbone.0", student[0]);
    compare("student.backbone.1", student[1]);
    compare("teacher.backbone.0", teacher_.backbone().forward(micro.global_crops));
  }

  void losses(const train::StepResult& ours, const json& theirs, int iteration) {
    const json& losses = theirs.at("losses");
    // A loss of weight 0 is not displayed.
    const auto loss = [&](const char* name, double value) {
      if (const auto displayed = losses.find(name); displayed != losses.end())
        number("loss", iteration, name, value, *displayed, kLosses);
    };
    loss("dino_local_crops_loss", ours.dino_local);
    loss("dino_global_crops_loss", ours.dino_global);
    // These two are displayed at half their value.
    loss("ibot_loss", ours.ibot / 2);
    loss("koleo_loss", objective_.koleo_weight * ours.koleo / 2);
    number("loss", iteration, "total_loss", ours.total, theirs.at("total_loss"), kLosses);
    const char* submodules[] = {"backbone", "dino_head", "ibot_head"};
    for (std::size_t i = 0; i < train::kSubmodules; ++i)
      if (const auto norm = theirs.at("clip_norms").find(submodules[i]); norm != theirs.at("clip_norms").end())
        number("norm", iteration, submodules[i], ours.gradient_norm[i], *norm, kGradients);
  }

  void gradients(const train::StepResult& ours, const json& theirs, int iteration) {
    const std::optional<io::Safetensors> recorded = read_if_there(folder_, "grads", iteration);
    const json recorded_norms = theirs.value("grad_norms", json::object());
    std::map<std::string, double> norms;
    for (const auto& [name, norm] : recorded_norms.items()) norms[without_chunk(name)] = norm;
    for (const train::NetworkParameter& p : student_.parameters()) {
      const std::string name = p.name();
      const at::Tensor gradient = p.parameter.tensor->grad();
      if (const at::Tensor* expected = recorded ? recorded->find(name) : nullptr) {
        tensor("gradient", iteration, name, moving(name, gradient), moving(name, expected->view_as(gradient)),
               kGradients);
        // Key biases have no gradient mathematically: rounding noise is compared with the scale of the sub-module.
        if (has_key_bias(name))
          tensor("gradient", iteration, name + " of keys", gradient.chunk(3)[1], expected->chunk(3)[1], kGradients,
                 1e-2 * ours.gradient_norm[static_cast<std::size_t>(p.submodule)]);
      }
      if (const auto norm = norms.find(name); norm != norms.end())
        number("norm", iteration, name, gradient.norm(2, at::kDouble).item<double>(), norm->second, kGradients);
    }
  }

  /// The change of every parameter since the start, not its value: an absolute comparison would pass without an
  /// optimiser.
  void changes(int iterations) {
    const std::optional<io::Safetensors> recorded = read_if_there(folder_, "state", iterations);
    if (!recorded) return;
    const at::NoGradGuard no_grad;
    units_->wait_for_teacher();
    units_->wait_for_student();
    for (const auto& [network, prefix] : {std::pair{&student_, "student."}, std::pair{&teacher_, "teacher."}})
      for (const train::NetworkParameter& p : network->parameters()) {
        const std::string name = prefix + p.name();
        const at::Tensor before = moving(name, need(init_, name, folder_));
        const at::Tensor ours = moving(name, p.parameter.tensor->detach()).view_as(before) - before;
        const at::Tensor theirs = moving(name, need(*recorded, name, folder_)) - before;
        // A teacher's small change drowns in the rounding of what it changes.
        const double rounding = 2e-7 * before.norm().item<double>();
        tensor("change", iterations - 1, name, ours, theirs, kChange, rounding / kChange);
      }
    if (objective_.centering == train::Centering::sinkhorn_knopp) return;
    tensor("center", iterations - 1, "dino_loss.center", trainer_->state().dino.state()[0],
           need(*recorded, "dino_loss.center", folder_), kCenters);
    if (objective_.ibot_weight == 0) return;
    tensor("center", iterations - 1, "ibot_patch_loss.center", trainer_->state().ibot.state()[0],
           need(*recorded, "ibot_patch_loss.center", folder_), kCenters);
  }

  std::filesystem::path folder_;
  const std::function<void(const Quantity&)>& report_;
  json meta_;
  io::Safetensors init_;
  train::Network student_, teacher_;
  train::ObjectiveConfig objective_;
  std::unique_ptr<train::Units> units_;
  std::unique_ptr<train::Trainer> trainer_;
};

}  // namespace

void replay(comm::Communicator& group, const std::filesystem::path& folder,
            const std::function<void(const Quantity&)>& report) {
  Run run(group, folder, report);
  int iterations = 0;
  while (run.iteration(iterations)) ++iterations;
  if (iterations == 0)
    throw core::InputError(fmt::format("{} records no iteration (batch_0000.safetensors).", folder.string()));
}

}  // namespace allosaur::testing
