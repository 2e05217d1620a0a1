#include "replay/replay.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <regex>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
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
// An element's gradient is rounding noise below this share of the root mean square of its tensor.
constexpr double kNoise = 1e-5;

/// The name without blocks in chunks: "blocks.<chunk>.<block>." becomes "blocks.<block>.", which counts all blocks
/// (block_chunks).
std::string without_chunk(const std::string& name) {
  static const std::regex chunked("blocks\\.[0-9]+\\.([0-9]+)\\.");
  return std::regex_replace(name, chunked, "blocks.$1.");
}

/// A file of tensors, whose messages name it.
class Recorded {
 public:
  explicit Recorded(const std::filesystem::path& file) : file_(file), tensors_(io::read_safetensors(file)) {
    for (auto& [name, tensor] : tensors_.tensors) name = without_chunk(name);
  }
  const at::Tensor* find(const std::string& name) const { return tensors_.find(name); }
  const at::Tensor& need(const std::string& name) const {
    const at::Tensor* tensor = find(name);
    if (tensor == nullptr) fail(fmt::format("it holds no tensor {}", name));
    return *tensor;
  }
  /// With as many elements as `shape` has; some recorded shapes have more dimensions of one.
  at::Tensor need(const std::string& name, at::IntArrayRef shape) const {
    const at::Tensor& tensor = need(name);
    if (tensor.numel() != c10::multiply_integers(shape))
      fail(fmt::format("its tensor {} has the shape [{}] instead of [{}]", name, fmt::join(tensor.sizes(), ", "),
                       fmt::join(shape, ", ")));
    return tensor.view(shape);
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw core::InputError(fmt::format("{} cannot be replayed: {}.", file_.string(), what));
  }

 private:
  std::filesystem::path file_;
  io::Safetensors tensors_;
};

std::optional<Recorded> read_if_there(const std::filesystem::path& folder, const char* kind, int number) {
  const auto file = folder / fmt::format("{}_{:04}.safetensors", kind, number);
  if (!exists(file)) return std::nullopt;
  return Recorded(file);
}

/// A count in the recording's configuration.
int count(const json& section, const char* key, int least = 1) {
  const int value = section.at(key);
  if (value < least) throw core::UsageError(fmt::format("{} is {} and has to be {} at least.", key, value, least));
  return value;
}

json read_meta(const std::filesystem::path& folder) {
  return json::parse(core::read_text(folder / "meta.json"));
}

/// Crops of one resolution, as many as a multiple of `images`.
const at::Tensor& crops(const Recorded& batch, const std::string& name, std::int64_t images,
                        const model::VitConfig& vit) {
  const at::Tensor& pixels = batch.need(name);
  const bool fits = pixels.dim() == 4 && pixels.size(0) > 0 && pixels.size(0) % images == 0 &&
                    pixels.size(1) == vit.in_channels && pixels.size(2) % vit.patch_size == 0 &&
                    pixels.size(3) % vit.patch_size == 0;
  if (!fits)
    batch.fail(fmt::format("its tensor {} of the shape [{}] does not hold a multiple of {} crops in patches of {}",
                           name, fmt::join(pixels.sizes(), ", "), images, vit.patch_size));
  return pixels;
}

void fill(std::vector<model::Parameter> parameters, const std::string& prefix, const Recorded& init) {
  for (const model::Parameter& p : parameters) p.tensor->copy_(init.need(prefix + p.name, p.tensor->sizes()));
}

/// The attention heads of a network whose recording does not state them: with which the teacher has the recorded
/// features. Without features heads of 32 are assumed.
int heads_by_features(model::VitConfig vit, const Recorded& init, const std::filesystem::path& folder) {
  const at::NoGradGuard no_grad;
  int best = std::max(1, vit.embed_dim / 32);
  const std::optional<Recorded> batch = read_if_there(folder, "batch", 0), recorded = read_if_there(folder, "acts", 0);
  const at::Tensor* cls = recorded ? recorded->find("teacher.backbone.0.x_norm_clstoken") : nullptr;
  if (!batch || cls == nullptr) return best;
  double smallest = std::numeric_limits<double>::infinity();
  for (vit.num_heads = 1; vit.num_heads <= vit.embed_dim; ++vit.num_heads) {
    if (vit.embed_dim % vit.num_heads != 0) continue;
    model::VisionTransformer teacher(vit);
    fill(teacher.parameters(), "teacher.backbone.", init);
    const at::Tensor ours = teacher.forward(crops(*batch, "collated_global_crops", 2, vit)).cls;
    const double difference =
        (ours - recorded->need("teacher.backbone.0.x_norm_clstoken", ours.sizes())).norm().item<double>();
    if (difference < smallest) {
      smallest = difference;
      best = vit.num_heads;
    }
  }
  return best;
}

int heads_of(const json& student, const model::VitConfig& vit, const Recorded& init,
             const std::filesystem::path& folder) {
  if (student.contains("num_heads")) return count(student, "num_heads");
  std::string arch = student.at("arch");
  if (arch.ends_with("_memeff")) arch.resize(arch.size() - 7);
  for (const std::string& name : model::vit_presets())
    if (arch == name) return model::vit_preset(name).num_heads;
  return heads_by_features(vit, init, folder);
}

/// The rate of stochastic depth of each block (drop_path_uniform).
std::vector<double> drop_rates(const json& student, int depth) {
  const double rate = student.at("drop_path_rate");
  std::vector<double> rates(static_cast<std::size_t>(depth), rate);
  if (!student.value("drop_path_uniform", true))
    for (int i = 0; i < depth; ++i) rates[static_cast<std::size_t>(i)] = depth == 1 ? 0 : rate * i / (depth - 1);
  return rates;
}

train::NetworkConfig network_config(const json& config, const Recorded& init, const std::filesystem::path& folder) {
  train::NetworkConfig network;
  const json& student = config.at("student");
  const auto rows = [&](const std::string& name) {
    const at::Tensor& tensor = init.need("student.backbone." + name);
    if (tensor.dim() == 0 || tensor.size(0) == 0)
      init.fail(fmt::format("its tensor student.backbone.{} is empty", name));
    return static_cast<int>(tensor.size(0));
  };
  model::VitConfig& vit = network.backbone;
  vit.image_size = count(config.at("crops"), "global_crops_size");
  vit.patch_size = count(student, "patch_size");
  vit.embed_dim = rows("norm.weight");
  vit.depth = 0;
  while (init.find(fmt::format("student.backbone.blocks.{}.norm1.weight", vit.depth)) != nullptr) ++vit.depth;
  const auto has = [&](const char* name) {
    return init.find(std::string("student.backbone.blocks.0.") + name) != nullptr;
  };
  vit.swiglu = has("mlp.w12.weight");
  if (!vit.swiglu) vit.mlp_ratio = static_cast<double>(rows("blocks.0.mlp.fc1.weight")) / vit.embed_dim;
  vit.qkv_bias = has("attn.qkv.bias");
  vit.proj_bias = has("attn.proj.bias");
  vit.ffn_bias = has(vit.swiglu ? "mlp.w3.bias" : "mlp.fc2.bias");
  vit.layer_scale = has("ls1.gamma") ? 1 : 0;
  vit.num_register_tokens = count(student, "num_register_tokens", 0);
  vit.interpolate_antialias = student.at("interpolate_antialias");
  vit.interpolate_offset = student.at("interpolate_offset");
  vit.num_heads = heads_of(student, vit, init, folder);
  const auto head = [&](const json& options) {
    return model::HeadConfig{.in_dim = vit.embed_dim,
                             .hidden_dim = count(options, "head_hidden_dim"),
                             .bottleneck_dim = count(options, "head_bottleneck_dim"),
                             .layers = std::max(1, count(options, "head_nlayers", 0)),
                             .prototypes = count(options, "head_n_prototypes")};
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

/// The part of a parameter that has a gradient mathematically: not the key biases.
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
        meta_(read_meta(folder)),
        init_(folder / "init.safetensors"),
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
    objective_.centering = centering(config.at("train").at("centering"));
    units_ = std::make_unique<train::Units>(group, student_, teacher_, units);
    trainer_ = std::make_unique<train::Trainer>(group, group, student_, teacher_, *units_, objective_, units);
    if (objective_.centering == train::Centering::softmax) {
      restore(trainer_->state().dino, "dino_loss.center", student_.dino_head());
      // A loss without weight has no centre.
      if (objective_.ibot_weight != 0) restore(trainer_->state().ibot, "ibot_patch_loss.center", student_.ibot_head());
    }
  }

  /// False when the iteration is not recorded.
  bool iteration(int number) {
    if (number >= static_cast<int>(meta_.at("iterations").size())) return false;
    const std::optional<Recorded> batch = read_if_there(folder_, "batch", number);
    if (!batch) return false;
    const json& theirs = meta_.at("iterations").at(static_cast<std::size_t>(number));
    train::StepInput input;
    train::MicroBatch& micro = input.batches.emplace_back();
    const model::VitConfig& vit = student_.config().backbone;
    micro.global_crops = crops(*batch, "collated_global_crops", 2, vit);
    input.group = micro.global_crops.size(0) / 2;
    if (const at::Tensor* local = batch->find("collated_local_crops"); local != nullptr && local->numel() > 0)
      micro.local_crops = crops(*batch, "collated_local_crops", input.group, vit);
    const std::int64_t pixels = micro.global_crops.size(2) * micro.global_crops.size(3);
    micro.masks =
        batch->need("collated_masks", {2 * input.group, pixels / vit.patch_size / vit.patch_size}).to(at::kBool);
    subsets(*batch, micro);
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
  static train::Centering centering(const std::string& name) {
    if (name == "centering") return train::Centering::softmax;
    if (name == "sinkhorn_knopp") return train::Centering::sinkhorn_knopp;
    throw core::UsageError(fmt::format("train.centering \"{}\" is not known.", name));
  }

  void fill(train::Network& network, const std::string& prefix) {
    for (const train::NetworkParameter& p : network.parameters())
      testing::fill({p.parameter}, prefix + p.prefix, init_);
  }

  /// Recorded subsets come per block as attention global, attention local, ffn global, ffn local; a block that never
  /// drops records none, and keeps all.
  void subsets(const Recorded& batch, train::MicroBatch& micro) const {
    const std::vector<double> rates = drop_rates(meta_.at("config").at("student"), student_.config().backbone.depth);
    if (std::ranges::all_of(rates, [](double rate) { return rate == 0; })) return;
    int next = 0;
    for (const double rate : rates)
      for (int branch = 0; branch < 2; ++branch) {
        const auto add = [&](std::vector<at::Tensor>& kept, std::int64_t rows) {
          kept.push_back(rate == 0 ? at::Tensor() : subset(batch, next++, rows));
        };
        add(micro.kept_global, micro.global_crops.size(0));
        if (micro.local_crops.defined()) add(micro.kept_local, micro.local_crops.size(0));
      }
  }

  static at::Tensor subset(const Recorded& batch, int number, std::int64_t rows) {
    const std::string name = fmt::format("brange_{:04}", number);
    const at::Tensor kept = batch.need(name).flatten().to(at::kLong);
    if (kept.numel() == 0 || kept.min().item<std::int64_t>() < 0 || kept.max().item<std::int64_t>() >= rows)
      batch.fail(fmt::format("its tensor {} does not choose among {} crops", name, rows));
    return kept;
  }

  void restore(loss::Center& center, const char* name, const model::ProjectionHead& head) {
    const at::Tensor value = init_.need(name, {head.config().prototypes});
    center.restore(at::stack({value, at::full_like(value, std::numeric_limits<double>::quiet_NaN())}));
  }

  void number(const char* kind, int iteration, const std::string& name, double ours, double theirs, double tolerance,
              double floor = 0) {
    report_({kind, fmt::format("{} [{}]", name, iteration), ours, theirs,
             relative(std::abs(ours - theirs), std::abs(theirs), floor), tolerance});
  }

  /// `floor`: a norm below which differences count as absolute.
  void tensor(const char* kind, int iteration, const std::string& name, const at::Tensor& ours,
              const at::Tensor& theirs, double tolerance, double floor = 0) {
    const auto norm = [](const at::Tensor& x) { return x.norm(2, at::kDouble).item<double>(); };
    report_({kind, fmt::format("{} [{}]", name, iteration), norm(ours), norm(theirs),
             relative(norm(ours - theirs), norm(theirs), floor), tolerance});
  }

  void features(const train::MicroBatch& micro, int iteration) {
    const std::optional<Recorded> recorded = read_if_there(folder_, "acts", iteration);
    if (!recorded) return;
    const at::NoGradGuard no_grad;
    units_->wait_for_teacher();
    units_->wait_for_student();
    const auto compare = [&](const std::string& network, const model::VitOutput& ours) {
      for (const auto& [what, values] : {std::pair{"clstoken", ours.cls}, std::pair{"regtokens", ours.registers},
                                         std::pair{"patchtokens", ours.patches}})
        if (const std::string name = fmt::format("{}.x_norm_{}", network, what);
            values.numel() > 0 && recorded->find(name) != nullptr)
          tensor("feature", iteration, fmt::format("{}.{}", network, what), values,
                 recorded->need(name, values.sizes()), kFeatures);
    };
    std::vector<model::VitInput> inputs{{micro.global_crops, micro.masks, micro.kept_global, {}}};
    if (micro.local_crops.defined()) inputs.push_back({micro.local_crops, {}, micro.kept_local, {}});
    const auto student = student_.backbone().forward_packed(inputs);
    for (std::size_t i = 0; i < student.size(); ++i) compare(fmt::format("student.backbone.{}", i), student[i]);
    compare("teacher.backbone.0", teacher_.backbone().forward(micro.global_crops));
  }

  void losses(const train::StepResult& ours, const json& theirs, int iteration) {
    const json& losses = theirs.at("losses");
    // A loss of weight 0 is not displayed.
    const auto loss = [&](const char* name, double value, double floor = 0) {
      if (const auto displayed = losses.find(name); displayed != losses.end())
        number("loss", iteration, name, value, *displayed, kLosses, floor);
    };
    loss("dino_local_crops_loss", ours.dino_local);
    loss("dino_global_crops_loss", ours.dino_global);
    // These two are displayed at half their value.
    loss("ibot_loss", ours.ibot / 2);
    // A mean of logarithms may lie near zero: what counts are the relative errors of the distances.
    loss("koleo_loss", objective_.koleo_weight * ours.koleo / 2, std::abs(objective_.koleo_weight));
    number("loss", iteration, "total_loss", ours.total, theirs.at("total_loss"), kLosses);
    const char* submodules[] = {"backbone", "dino_head", "ibot_head"};
    const json clip_norms = theirs.value("clip_norms", json::object());  // none without clipping
    for (std::size_t i = 0; i < train::kSubmodules; ++i)
      if (const auto norm = clip_norms.find(submodules[i]); norm != clip_norms.end())
        number("norm", iteration, submodules[i], ours.gradient_norm[i], *norm, kGradients);
  }

  void gradients(const train::StepResult& ours, const json& theirs, int iteration) {
    const std::optional<Recorded> recorded = read_if_there(folder_, "grads", iteration);
    const json recorded_norms = theirs.value("grad_norms", json::object());
    std::map<std::string, double> norms;
    for (const auto& [name, norm] : recorded_norms.items()) norms[without_chunk(name)] = norm;
    for (const train::NetworkParameter& p : student_.parameters()) {
      const std::string name = p.name();
      const at::Tensor gradient = p.parameter.tensor->grad();
      settle(name, gradient);
      if (recorded && recorded->find(name) != nullptr) {
        const at::Tensor expected = recorded->need(name, gradient.sizes());
        tensor("gradient", iteration, name, moving(name, gradient), moving(name, expected), kGradients);
        // Key biases have no gradient mathematically: rounding noise is compared with the scale of the sub-module.
        if (has_key_bias(name))
          tensor("gradient", iteration, name + " of keys", gradient.chunk(3)[1], expected.chunk(3)[1], kGradients,
                 1e-2 * ours.gradient_norm[static_cast<std::size_t>(p.submodule)]);
      }
      if (const auto norm = norms.find(name); norm != norms.end())
        number("norm", iteration, name, gradient.norm(2, at::kDouble).item<double>(), norm->second, kGradients);
    }
  }

  /// Notes the elements of a parameter whose gradients are more than rounding noise so far: of noise AdamW makes full
  /// steps.
  void settle(const std::string& name, const at::Tensor& gradient) {
    at::Tensor settled = gradient.abs() >= kNoise * gradient.square().mean().sqrt();
    if (has_key_bias(name)) settled.chunk(3)[1].fill_(false);
    if (const auto [place, added] = settled_.emplace(name, settled); !added) place->second.logical_and_(settled);
  }

  /// The change of every parameter since the start, not its value: an absolute comparison would pass without an
  /// optimiser.
  void changes(int iterations) {
    const std::optional<Recorded> recorded = read_if_there(folder_, "state", iterations);
    if (!recorded) return;
    const at::NoGradGuard no_grad;
    units_->wait_for_teacher();
    units_->wait_for_student();
    for (const auto& [network, prefix] : {std::pair{&student_, "student."}, std::pair{&teacher_, "teacher."}})
      for (const train::NetworkParameter& p : network->parameters()) {
        const std::string name = prefix + p.name();
        const at::Tensor& values = *p.parameter.tensor;
        const at::Tensor &settled = settled_.at(p.name()), before = init_.need(name, values.sizes());
        const at::Tensor ours = (values.detach() - before) * settled;
        const at::Tensor theirs = (recorded->need(name, values.sizes()) - before) * settled;
        // A teacher's small change drowns in the rounding of what it changes.
        const double rounding = 2e-7 * before.norm().item<double>();
        tensor("change", iterations - 1, name, ours, theirs, kChange, rounding / kChange);
      }
    if (objective_.centering == train::Centering::sinkhorn_knopp) return;
    const auto center = [&](const char* name, const loss::Center& of_loss) {
      const at::Tensor ours = of_loss.state()[0];
      tensor("center", iterations - 1, name, ours, recorded->need(name, ours.sizes()), kCenters);
    };
    center("dino_loss.center", trainer_->state().dino);
    if (objective_.ibot_weight != 0) center("ibot_patch_loss.center", trainer_->state().ibot);
  }

  std::filesystem::path folder_;
  const std::function<void(const Quantity&)>& report_;
  json meta_;
  Recorded init_;
  std::map<std::string, at::Tensor> settled_;  // bool, of each parameter
  train::Network student_, teacher_;
  train::ObjectiveConfig objective_;
  std::unique_ptr<train::Units> units_;
  std::unique_ptr<train::Trainer> trainer_;
};

}  // namespace

void replay(comm::Communicator& group, const std::filesystem::path& folder,
            const std::function<void(const Quantity&)>& report) {
  int iterations = 0;
  try {
    Run run(group, folder, report);
    while (run.iteration(iterations)) ++iterations;
  } catch (const json::exception& problem) {
    const std::string what = problem.what();  // "[json.exception.out_of_range.403] key 'config' not found"
    throw core::InputError(
        fmt::format("{} cannot be replayed: {}.", (folder / "meta.json").string(), what.substr(what.find("] ") + 2)));
  } catch (const core::UsageError& problem) {  // names keys, which are those of the recording
    throw core::InputError(fmt::format("{} cannot be replayed: {}", (folder / "meta.json").string(), problem.what()));
  } catch (const c10::Error& problem) {
    throw core::InputError(
        fmt::format("{} cannot be replayed: {}.", folder.string(), problem.what_without_backtrace()));
  }
  if (iterations == 0)
    throw core::InputError(fmt::format("{} records no iteration (batch_0000.safetensors).", folder.string()));
}

}  // namespace allosaur::testing
