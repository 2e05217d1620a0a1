#include "model/weights.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "io/torch_file.hpp"

namespace allosaur::model {

namespace {

constexpr const char* kMetadataKey = "allosaur.backbone";

/// The configuration that the tensors themselves show.
VitConfig infer_config(const io::NamedTensors& tensors, const std::string& where) {
  std::map<std::string, at::Tensor> by_name(tensors.begin(), tensors.end());
  const auto need = [&](const std::string& name, std::int64_t dimensions) -> const at::Tensor& {
    const auto found = by_name.find(name);
    if (found == by_name.end() || found->second.dim() != dimensions || found->second.numel() == 0)
      throw core::StorageError(
          fmt::format("{} holds no tensor \"{}\" of {} dimensions: it is not a DINOv2 vision transformer.", where, name,
                      dimensions));
    return found->second;
  };
  VitConfig config;
  const at::Tensor& patch = need("patch_embed.proj.weight", 4);
  config.in_channels = static_cast<int>(patch.size(1));
  config.embed_dim = static_cast<int>(patch.size(0));
  config.patch_size = static_cast<int>(patch.size(2));
  config.num_heads = std::max(1, config.embed_dim / 64);
  const std::int64_t positions = need("pos_embed", 3).size(1) - 1;
  config.image_size = static_cast<int>(std::lround(std::sqrt(static_cast<double>(positions)))) * config.patch_size;
  config.depth = 0;
  while (by_name.contains(fmt::format("blocks.{}.norm1.weight", config.depth))) ++config.depth;
  config.swiglu = by_name.contains("blocks.0.mlp.w12.weight");
  config.qkv_bias = by_name.contains("blocks.0.attn.qkv.bias");
  config.proj_bias = by_name.contains("blocks.0.attn.proj.bias");
  config.ffn_bias = by_name.contains(config.swiglu ? "blocks.0.mlp.w3.bias" : "blocks.0.mlp.fc2.bias");
  config.layer_scale = by_name.contains("blocks.0.ls1.gamma") ? 1.0 : 0.0;
  if (!config.swiglu && config.depth > 0)
    config.mlp_ratio = static_cast<double>(need("blocks.0.mlp.fc1.weight", 2).size(0)) / config.embed_dim;
  if (by_name.contains("register_tokens")) {
    // The released models with registers resize positions by size and with antialiasing.
    config.num_register_tokens = static_cast<int>(need("register_tokens", 3).size(1));
    config.interpolate_antialias = true;
    config.interpolate_offset = 0;
  }
  return config;
}

std::unique_ptr<VisionTransformer> from_checkpoint(const std::filesystem::path& folder) {
  const io::ShardedReader reader = open_checkpoint(folder);
  auto backbone = std::make_unique<VisionTransformer>(vit_from_json(reader.text_attribute(kVitAttribute)));
  assign(backbone->parameters(), backbone_tensors(checkpoint_tensors(reader, "teacher", "backbone.")), folder.string());
  return backbone;
}

}  // namespace

std::unique_ptr<VisionTransformer> load_backbone(const std::filesystem::path& file) {
  if (std::filesystem::is_directory(file)) return from_checkpoint(file);
  const io::Safetensors content =
      io::is_torch_file(file) ? io::Safetensors{io::read_torch_file(file), {}} : io::read_safetensors(file);
  const io::NamedTensors tensors = backbone_tensors(content.tensors);
  const auto metadata = content.metadata.find(kMetadataKey);
  auto backbone = std::make_unique<VisionTransformer>(
      metadata != content.metadata.end() ? vit_from_json(metadata->second) : infer_config(tensors, file.string()));
  assign(backbone->parameters(), tensors, file.string());
  return backbone;
}

std::unique_ptr<VisionTransformer> new_backbone(const VitConfig& config, std::uint64_t seed) {
  auto backbone = std::make_unique<VisionTransformer>(config);
  for (const Parameter& parameter : backbone->parameters()) initialise(parameter, "backbone.", seed);
  return backbone;
}

void save_backbone(const std::filesystem::path& file, VisionTransformer& backbone) {
  io::NamedTensors tensors;
  for (const Parameter& parameter : backbone.parameters())
    tensors.emplace_back(parameter.name, parameter.tensor->detach().to(at::kCPU, at::kFloat).contiguous());
  io::write_safetensors(file, tensors, {{"format", "pt"}, {kMetadataKey, to_json(backbone.config())}});
}

std::string fingerprint(VisionTransformer& backbone) {
  const std::string config = to_json(backbone.config());
  std::uint64_t hash = core::hash_text(config);
  for (const Parameter& parameter : backbone.parameters()) {
    const at::Tensor values = parameter.tensor->detach().to(at::kCPU, at::kFloat).contiguous();
    hash = core::hash_bytes(
        std::as_bytes(std::span(values.data_ptr<float>(), static_cast<std::size_t>(values.numel()))), hash);
  }
  return core::hash_hex(hash);
}

void assign(const std::vector<Parameter>& parameters, const io::NamedTensors& source, const std::string& where) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> by_name(source.begin(), source.end());
  std::vector<std::string> problems;
  for (const Parameter& parameter : parameters) {
    const auto found = by_name.find(parameter.name);
    if (found == by_name.end()) {
      problems.push_back(fmt::format("\"{}\" is missing", parameter.name));
      continue;
    }
    if (found->second.sizes() == parameter.tensor->sizes())
      parameter.tensor->copy_(found->second);
    else
      problems.push_back(fmt::format("\"{}\" has shape [{}] instead of [{}]", parameter.name,
                                     fmt::join(found->second.sizes(), ", "),
                                     fmt::join(parameter.tensor->sizes(), ", ")));
    by_name.erase(found);
  }
  for (const auto& [name, tensor] : by_name) problems.push_back(fmt::format("\"{}\" is not part of the network", name));
  if (problems.empty()) return;
  const std::size_t shown = std::min<std::size_t>(problems.size(), 8);
  throw core::StorageError(
      fmt::format("{} does not fit the network: {}{}.", where,
                  fmt::join(problems.begin(), problems.begin() + static_cast<std::ptrdiff_t>(shown), "; "),
                  shown < problems.size() ? fmt::format("; and {} more", problems.size() - shown) : ""));
}

void require_channels(const VitConfig& config, int channels, const std::string& where) {
  if (config.in_channels != channels)
    throw core::UsageError(
        fmt::format("The network in {} reads images of {} channels, but data.channels is {}: set it to {}, or give "
                    "weights for {} channels.",
                    where, config.in_channels, channels, config.in_channels, channels));
}

std::string to_json(const VitConfig& c) {
  return nlohmann::json{{"image_size", c.image_size},
                        {"patch_size", c.patch_size},
                        {"in_channels", c.in_channels},
                        {"embed_dim", c.embed_dim},
                        {"depth", c.depth},
                        {"num_heads", c.num_heads},
                        {"mlp_ratio", c.mlp_ratio},
                        {"swiglu", c.swiglu},
                        {"qkv_bias", c.qkv_bias},
                        {"proj_bias", c.proj_bias},
                        {"ffn_bias", c.ffn_bias},
                        {"num_register_tokens", c.num_register_tokens},
                        {"layer_scale", c.layer_scale},
                        {"interpolate_antialias", c.interpolate_antialias},
                        {"interpolate_offset", c.interpolate_offset}}
      .dump();
}

VitConfig vit_from_json(const std::string& text) {
  try {
    const auto json = nlohmann::json::parse(text);
    VitConfig c;
    json.at("image_size").get_to(c.image_size);
    json.at("patch_size").get_to(c.patch_size);
    // The first files of ours did not say these.
    c.in_channels = json.value("in_channels", c.in_channels);
    c.qkv_bias = json.value("qkv_bias", c.qkv_bias);
    c.proj_bias = json.value("proj_bias", c.proj_bias);
    c.ffn_bias = json.value("ffn_bias", c.ffn_bias);
    json.at("embed_dim").get_to(c.embed_dim);
    json.at("depth").get_to(c.depth);
    json.at("num_heads").get_to(c.num_heads);
    json.at("mlp_ratio").get_to(c.mlp_ratio);
    json.at("swiglu").get_to(c.swiglu);
    json.at("num_register_tokens").get_to(c.num_register_tokens);
    json.at("layer_scale").get_to(c.layer_scale);
    json.at("interpolate_antialias").get_to(c.interpolate_antialias);
    json.at("interpolate_offset").get_to(c.interpolate_offset);
    return c;
  } catch (const nlohmann::json::exception& error) {
    throw core::StorageError(fmt::format("The network's description is damaged ({}).", error.what()));
  }
}

std::string to_json(const std::vector<Placement>& layout) {
  nlohmann::json json = nlohmann::json::object();
  for (const Placement& place : layout) json[place.array].push_back({place.name, place.shape, place.offset});
  return json.dump();
}

std::vector<Placement> placements_from_json(const std::string& text) {
  try {
    std::vector<Placement> layout;
    const auto json = nlohmann::json::parse(text);
    for (const auto& [array, entries] : json.items())
      for (const auto& entry : entries) layout.push_back({array, entry.at(0), entry.at(1), entry.at(2)});
    return layout;
  } catch (const nlohmann::json::exception& error) {
    throw core::StorageError(fmt::format("The checkpoint's layout is damaged ({}).", error.what()));
  }
}

io::ShardedReader open_checkpoint(const std::filesystem::path& folder) {
  if (!std::filesystem::exists(folder / kCheckpointFile))
    throw core::UsageError(
        fmt::format("{} is no folder of a checkpoint: there is no {} in it. Name one that a run wrote, such as "
                    "RUN/checkpoints/0001250.",
                    folder.string(), kCheckpointFile));
  return io::ShardedReader(folder / kCheckpointFile);
}

io::NamedTensors checkpoint_tensors(const io::ShardedReader& checkpoint, const std::string& network,
                                    const std::string& unit_prefix) {
  io::NamedTensors tensors;
  for (const Placement& place : placements_from_json(checkpoint.text_attribute(kLayoutAttribute))) {
    const std::string unit = place.array.substr(std::string("teacher.").size());
    if (!unit.starts_with(unit_prefix)) continue;
    std::int64_t count = 1;
    for (const std::int64_t size : place.shape) count *= size;
    tensors.emplace_back(place.name, checkpoint.read(network + "." + unit, place.offset, count).view(place.shape));
  }
  return tensors;
}

void resize_positions(io::NamedTensors& tensors, const std::string& prefix, const VitConfig& config) {
  const auto found = std::ranges::find(tensors, prefix + "pos_embed", &io::NamedTensors::value_type::first);
  if (found == tensors.end() || found->second.dim() != 3) return;  // assign() says so
  const std::int64_t grid = config.grid(), patches = found->second.size(1) - 1, dim = found->second.size(2);
  const std::int64_t side = std::lround(std::sqrt(static_cast<double>(patches)));
  if (side == grid || side * side != patches) return;
  const at::Tensor square =
      found->second.narrow(1, 1, patches).to(at::kFloat).view({1, side, side, dim}).permute({0, 3, 1, 2});
  const at::Tensor resized =
      at::upsample_bicubic2d(square, {grid, grid}, false).permute({0, 2, 3, 1}).reshape({1, grid * grid, dim});
  found->second = at::cat({found->second.narrow(1, 0, 1).to(at::kFloat), resized}, 1);
}

io::NamedTensors backbone_tensors(const io::NamedTensors& tensors) {
  // What stands beside a model (an optimiser) or a teacher (the student) is left out.
  std::string chosen;
  for (const std::string part : {"model.", "module.", "teacher."}) {
    const bool there =
        std::ranges::any_of(tensors, [&](const auto& named) { return named.first.starts_with(chosen + part); });
    if (there) chosen += part;
  }
  io::NamedTensors result;
  for (const auto& [original, tensor] : tensors) {
    if (!original.starts_with(chosen)) continue;
    std::string name = original.substr(chosen.size());
    for (const std::string prefix : {"module.", "backbone.", "module."})
      if (name.starts_with(prefix)) name.erase(0, prefix.size());
    if (name.starts_with("dino_head.") || name.starts_with("ibot_head.")) continue;
    // blocks.<chunk>.<block>.rest: the second index is already the global one.
    if (name.starts_with("blocks.")) {
      const std::size_t first = name.find('.', 7);
      const std::size_t second = first == std::string::npos ? first : name.find('.', first + 1);
      if (second != std::string::npos &&
          std::all_of(name.begin() + static_cast<std::ptrdiff_t>(first) + 1,
                      name.begin() + static_cast<std::ptrdiff_t>(second), [](char c) { return c >= '0' && c <= '9'; }))
        name.erase(7, first - 6);
    }
    result.emplace_back(name, tensor);
  }
  return result;
}

}  // namespace allosaur::model
