#include "model/vision_transformer.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "model/attention.hpp"
#include "model/fused.hpp"
#include "model/linear.hpp"
#include "model/packing.hpp"
#include "model/recompute.hpp"

namespace allosaur::model {

namespace {

struct Preset {
  const char* name;
  int embed_dim, depth, num_heads;
};
constexpr std::array kPresets{Preset{"vit_tiny", 192, 12, 3}, Preset{"vit_small", 384, 12, 6},
                              Preset{"vit_base", 768, 12, 12}, Preset{"vit_large", 1024, 24, 16},
                              Preset{"vit_giant2", 1536, 40, 24}};

// Names of units.
constexpr const char* kEmbedding = "patch_embed";
constexpr const char* kNorm = "norm";
std::string block_name(std::size_t i) {
  return fmt::format("blocks.{}", i);
}

}  // namespace

int VitConfig::hidden_dim() const noexcept {
  const auto hidden = static_cast<int>(embed_dim * mlp_ratio);
  return swiglu ? (hidden * 2 / 3 + 7) / 8 * 8 : hidden;
}

VitConfig vit_preset(const std::string& arch) {
  for (const Preset& preset : kPresets)
    if (arch == preset.name) {
      VitConfig config;
      config.embed_dim = preset.embed_dim;
      config.depth = preset.depth;
      config.num_heads = preset.num_heads;
      return config;
    }
  throw core::UsageError(
      fmt::format("There is no architecture \"{}\"; choose one of {}.", arch, fmt::join(vit_presets(), ", ")));
}

std::vector<std::string> vit_presets() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

/// x + ls1(attn(norm1 x)), x + ls2(ffn(norm2 x)), on packed tokens (dinov2/layers/block.py).
struct VisionTransformer::Block {
  int heads = 1;
  bool swiglu = false;
  at::Tensor norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, ls1_gamma;
  // MLP: fc1, fc2. SwiGLU: w12 (gate and value in one), w3.
  at::Tensor norm2_weight, norm2_bias, in_weight, in_bias, out_weight, out_bias, ls2_gamma;

  /// Adds both branches to tokens x [T, D] of several resolutions, one after the other, in place; attention stays
  /// within each image.
  void apply(at::Tensor& x, const AttentionRows& rows, const Rows& feed_forward, bool fast) const {
    const at::Tensor qkv = norm_linear(x, rows.read, norm1_weight, norm1_bias, qkv_weight, qkv_bias, fast);
    at::Tensor attended = attention(qkv, rows.extents, heads);
    if (rows.attended.defined()) attended = attended.index_select(0, rows.attended);
    x = add_linear(x, rows.written, Activation::none, attended, {}, proj_weight, proj_bias, ls1_gamma, fast);
    const at::Tensor hidden = norm_linear(x, feed_forward, norm2_weight, norm2_bias, in_weight, {}, fast);
    x = add_linear(x, feed_forward, swiglu ? Activation::swiglu : Activation::gelu, hidden, in_bias, out_weight,
                   out_bias, ls2_gamma, fast);
  }
};

VisionTransformer::~VisionTransformer() = default;

VisionTransformer::VisionTransformer(const VitConfig& config) : config_(config) {
  if (config.embed_dim % config.num_heads != 0)
    throw core::UsageError(fmt::format("student.embed_dim {} is not a multiple of student.num_heads {}.",
                                       config.embed_dim, config.num_heads));
  if (config.image_size % config.patch_size != 0)
    throw core::UsageError(
        fmt::format("The image size {} is not a multiple of the patch size {}.", config.image_size, config.patch_size));
  const std::int64_t dim = config.embed_dim, hidden = config.hidden_dim();
  const std::int64_t patches = static_cast<std::int64_t>(config.grid()) * config.grid();
  cls_token_ = at::zeros({1, 1, dim});
  pos_embed_ = at::zeros({1, 1 + patches, dim});
  if (config.num_register_tokens > 0) register_tokens_ = at::zeros({1, config.num_register_tokens, dim});
  mask_token_ = at::zeros({1, dim});
  patch_weight_ = at::zeros({dim, config.in_channels, config.patch_size, config.patch_size});
  patch_bias_ = at::zeros({dim});
  for (int i = 0; i < config.depth; ++i) {
    Block& block = blocks_.emplace_back();
    block.heads = config.num_heads;
    block.swiglu = config.swiglu;
    for (at::Tensor* norm : {&block.norm1_weight, &block.norm1_bias, &block.norm2_weight, &block.norm2_bias})
      *norm = at::zeros({dim});
    if (config.layer_scale != 0)
      for (at::Tensor* gamma : {&block.ls1_gamma, &block.ls2_gamma}) *gamma = at::zeros({dim});
    block.qkv_weight = at::zeros({3 * dim, dim});
    if (config.qkv_bias) block.qkv_bias = at::zeros({3 * dim});
    block.proj_weight = at::zeros({dim, dim});
    if (config.proj_bias) block.proj_bias = at::zeros({dim});
    const std::int64_t in = config.swiglu ? 2 * hidden : hidden;
    block.in_weight = at::zeros({in, dim});
    block.out_weight = at::zeros({dim, hidden});
    if (config.ffn_bias) {
      block.in_bias = at::zeros({in});
      block.out_bias = at::zeros({dim});
    }
  }
  norm_weight_ = at::zeros({dim});
  norm_bias_ = at::zeros({dim});
}

std::vector<Parameter> VisionTransformer::parameters() {
  std::vector<Parameter> list;
  const auto add = [&list](std::string unit, std::string name, at::Tensor& tensor, Init init, double scale = 0) {
    if (tensor.defined()) list.push_back({std::move(name), std::move(unit), &tensor, init, scale});
  };
  const double patch_bound =
      1.0 / std::sqrt(static_cast<double>(config_.in_channels) * config_.patch_size * config_.patch_size);
  add(kEmbedding, "cls_token", cls_token_, Init::tiny_normal);
  add(kEmbedding, "pos_embed", pos_embed_, Init::truncated_normal);
  add(kEmbedding, "register_tokens", register_tokens_, Init::tiny_normal);
  add(kEmbedding, "mask_token", mask_token_, Init::zeros);
  add(kEmbedding, "patch_embed.proj.weight", patch_weight_, Init::fan_in_uniform, patch_bound);
  add(kEmbedding, "patch_embed.proj.bias", patch_bias_, Init::fan_in_uniform, patch_bound);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    const std::string unit = block_name(i);
    const auto in_block = [&](const char* name, at::Tensor& tensor, Init init) {
      add(unit, fmt::format("{}.{}", unit, name), tensor, init, config_.layer_scale);
    };
    in_block("norm1.weight", block.norm1_weight, Init::ones);
    in_block("norm1.bias", block.norm1_bias, Init::zeros);
    in_block("attn.qkv.weight", block.qkv_weight, Init::truncated_normal);
    in_block("attn.qkv.bias", block.qkv_bias, Init::zeros);
    in_block("attn.proj.weight", block.proj_weight, Init::truncated_normal);
    in_block("attn.proj.bias", block.proj_bias, Init::zeros);
    in_block("ls1.gamma", block.ls1_gamma, Init::layer_scale);
    in_block("norm2.weight", block.norm2_weight, Init::ones);
    in_block("norm2.bias", block.norm2_bias, Init::zeros);
    in_block(config_.swiglu ? "mlp.w12.weight" : "mlp.fc1.weight", block.in_weight, Init::truncated_normal);
    in_block(config_.swiglu ? "mlp.w12.bias" : "mlp.fc1.bias", block.in_bias, Init::zeros);
    in_block(config_.swiglu ? "mlp.w3.weight" : "mlp.fc2.weight", block.out_weight, Init::truncated_normal);
    in_block(config_.swiglu ? "mlp.w3.bias" : "mlp.fc2.bias", block.out_bias, Init::zeros);
    in_block("ls2.gamma", block.ls2_gamma, Init::layer_scale);
  }
  add(kNorm, "norm.weight", norm_weight_, Init::ones);
  add(kNorm, "norm.bias", norm_bias_, Init::zeros);
  return list;
}

void VisionTransformer::enter(const std::string& unit) const {
  if (before_unit_) before_unit_(unit);
}

at::Tensor VisionTransformer::positions(std::int64_t height, std::int64_t width) const {
  const std::int64_t grid = config_.grid();
  if (height == grid && width == grid) return pos_embed_;
  const std::int64_t dim = config_.embed_dim;
  const at::Tensor cls = pos_embed_.narrow(1, 0, 1);
  const at::Tensor square =
      pos_embed_.narrow(1, 1, grid * grid).to(at::kFloat).view({1, grid, grid, dim}).permute({0, 3, 1, 2});
  // With an offset the sampling grid follows the given scale, not the ratio of sizes, as published
  // (dinov2/models/vision_transformer.py, interpolate_pos_encoding); without, the sizes.
  std::optional<double> scale_h, scale_w;
  if (config_.interpolate_offset != 0) {
    scale_h = (static_cast<double>(height) + config_.interpolate_offset) / static_cast<double>(grid);
    scale_w = (static_cast<double>(width) + config_.interpolate_offset) / static_cast<double>(grid);
  }
  const at::Tensor resized = config_.interpolate_antialias
                                 ? at::_upsample_bicubic2d_aa(square, {height, width}, false, scale_h, scale_w)
                                 : at::upsample_bicubic2d(square, {height, width}, false, scale_h, scale_w);
  return at::cat({cls, resized.permute({0, 2, 3, 1}).reshape({1, height * width, dim}).to(cls.dtype())}, 1);
}

at::Tensor VisionTransformer::embed(const at::Tensor& images, const at::Tensor& masks) const {
  const std::int64_t batch = images.size(0), channels = config_.in_channels, dim = config_.embed_dim,
                     patch = config_.patch_size;
  if (images.size(1) != channels)
    throw core::UsageError(
        fmt::format("Images have {} channels, but the network reads {} (data.channels).", images.size(1), channels));
  if (images.size(2) % patch != 0 || images.size(3) % patch != 0)
    throw core::UsageError(fmt::format("Images of {} x {} pixels are not multiples of the patch size {}.",
                                       images.size(2), images.size(3), patch));
  const std::int64_t height = images.size(2) / patch, width = images.size(3) / patch;
  // A convolution whose stride is its kernel is a matrix product over patches.
  const at::Tensor pixels = images.to(patch_weight_.options())
                                .view({batch, channels, height, patch, width, patch})
                                .permute({0, 2, 4, 1, 3, 5})
                                .reshape({batch, height * width, channels * patch * patch});
  at::Tensor x =
      linear(pixels, patch_weight_.view({dim, channels * patch * patch}), patch_bias_, fast_products_);  // [B, N, D]
  if (masks.defined()) x = at::where(masks.unsqueeze(-1), mask_token_.unsqueeze(0).to(x.dtype()), x);
  x = at::cat({cls_token_.expand({batch, 1, dim}), x}, 1) + positions(height, width);
  if (config_.num_register_tokens > 0)
    x = at::cat({x.narrow(1, 0, 1), register_tokens_.expand({batch, -1, -1}), x.narrow(1, 1, height * width)}, 1);
  return x;
}

VitOutput VisionTransformer::split(const at::Tensor& tokens) const {
  const std::int64_t registers = config_.num_register_tokens;
  return {tokens.select(1, 0), tokens.narrow(1, 1, registers),
          tokens.narrow(1, 1 + registers, tokens.size(1) - 1 - registers)};
}

VitOutput VisionTransformer::forward(const at::Tensor& images, const at::Tensor& masks) const {
  return forward_packed({{images, masks, {}, {}}}).front();
}

std::vector<VitOutput> VisionTransformer::forward_packed(const std::vector<VitInput>& inputs) const {
  enter(kEmbedding);
  std::vector<at::Tensor> embedded;
  std::vector<std::int64_t> tokens;
  for (const VitInput& input : inputs) {
    const at::Tensor x = embed(input.images, input.masks);
    tokens.push_back(x.size(1));
    embedded.push_back(x.flatten(0, 1));
  }
  at::Tensor x = at::cat(embedded);  // [T, D]; a copy of a single one too, as blocks work in place
  const Packing packing(inputs, tokens, 1 + config_.num_register_tokens, x.device());
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    enter(block_name(i));
    const bool last = i + 1 == blocks_.size();
    const auto block = [this, i, attention = packing.attention(i, last),
                        feed_forward = packing.feed_forward(i, last)](at::Tensor packed) {
      blocks_[i].apply(packed, attention, feed_forward, fast_products_);
      return packed;
    };
    x = checkpoint_activations_ && x.requires_grad()
            ? recompute([block](const at::Tensor& packed) { return block(packed.clone()); }, x)
            : block(std::move(x));
  }

  enter(kNorm);
  if (packing.outputs().defined()) x = x.index_select(0, packing.outputs());
  x = at::layer_norm(x, {config_.embed_dim}, norm_weight_, norm_bias_, kNormEps);
  std::vector<VitOutput> outputs;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Extent& e = packing.extents()[i];
    if (inputs[i].patches.defined()) {
      const std::int64_t patches = inputs[i].patches.size(0);
      outputs.push_back({x.narrow(0, begin, e.batch), {}, x.narrow(0, begin + e.batch, patches)});
      begin += e.batch + patches;
    } else {
      outputs.push_back(split(x.narrow(0, e.begin, e.rows()).view({e.batch, e.tokens, config_.embed_dim})));
    }
  }
  return outputs;
}

std::vector<int> VisionTransformer::last_blocks(int n) const {
  std::vector<int> blocks(static_cast<std::size_t>(std::min(n, config_.depth)));
  std::iota(blocks.begin(), blocks.end(), config_.depth - static_cast<int>(blocks.size()));
  return blocks;
}

std::vector<VitOutput> VisionTransformer::intermediate_layers(const at::Tensor& images, const std::vector<int>& blocks,
                                                              FinalNorm norm) const {
  if (at::GradMode::is_enabled())
    throw std::logic_error("intermediate_layers() works in place: it is for inference only");
  std::vector<int> wanted = blocks;
  std::ranges::sort(wanted);
  if (std::ranges::adjacent_find(wanted) != wanted.end() ||
      (!wanted.empty() && (wanted.front() < 0 || wanted.back() >= config_.depth)))
    throw core::UsageError(
        fmt::format("The blocks {} must be different ones from 0 to {}.", fmt::join(blocks, ", "), config_.depth - 1));
  enter(kEmbedding);
  at::Tensor x = embed(images, {});
  const std::int64_t batch = x.size(0), tokens = x.size(1), dim = config_.embed_dim;
  const AttentionRows all{{{batch, tokens, 0}}, {}, {}, {}};
  x = x.flatten(0, 1).clone();
  std::vector<VitOutput> outputs;
  for (std::size_t i = 0; outputs.size() < wanted.size(); ++i) {
    enter(block_name(i));
    blocks_[i].apply(x, all, {}, fast_products_);
    if (static_cast<int>(i) != wanted[outputs.size()]) continue;
    if (norm == FinalNorm::applied && outputs.empty()) enter(kNorm);
    const at::Tensor kept =
        norm == FinalNorm::applied ? at::layer_norm(x, {dim}, norm_weight_, norm_bias_, kNormEps) : x.clone();
    outputs.push_back(split(kept.view({batch, tokens, dim})));
  }
  return outputs;
}

}  // namespace allosaur::model
