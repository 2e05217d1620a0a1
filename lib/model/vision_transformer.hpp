#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/parameter.hpp"

namespace allosaur::model {

/// Shape of a vision transformer (DINOv2 paper, Table 17). Head dimension is embed_dim / num_heads.
struct VitConfig {
  int image_size = 224, patch_size = 14, in_channels = 3;
  int embed_dim = 1024, depth = 24, num_heads = 16;
  double mlp_ratio = 4.0;
  bool swiglu = false;
  bool qkv_bias = true, proj_bias = true, ffn_bias = true;
  int num_register_tokens = 0;
  double layer_scale = 1e-5;  ///< initial gamma; 0 = no LayerScale
  bool interpolate_antialias = false;
  double interpolate_offset = 0.1;  ///< 0 = resize positions by exact size

  int grid() const noexcept { return image_size / patch_size; }  ///< patches a side at image_size
  int hidden_dim() const noexcept;                               ///< of the feed-forward (SwiGLU: rounded 2/3)
};

/// vit_tiny, vit_small, vit_base, vit_large, vit_giant2 ("" is an error: core::UsageError listing the names).
VitConfig vit_preset(const std::string& arch);
std::vector<std::string> vit_presets();

/// Tokens, after the final norm where nothing else is said.
struct VitOutput {
  at::Tensor cls;        // [B, D]
  at::Tensor registers;  // [B, R, D]; undefined where VitInput::patches is not
  at::Tensor patches;    // [B, N, D], or [m, D]: those that VitInput::patches chose
};

/// One crop resolution of a packed forward.
struct VitInput {
  at::Tensor images;  // [B, C, H, W], H and W multiples of the patch size; moved to the weights' type and device
  at::Tensor masks;   // bool [B, N] or undefined
  /// Rows kept by stochastic depth, in order: block 0 attention, block 0 ffn, block 1 attention, ...; each i64 [k]
  /// (dinov2/layers/block.py, drop_add_residual_stochastic_depth), in host memory, or undefined: all rows. Empty: all
  /// rows of every branch.
  std::vector<at::Tensor> kept;
  /// i64 [m] into [B * N], without repetition, in host memory: the patches that are wanted. The last block then works
  /// on these and the class tokens only. Undefined: all.
  at::Tensor patches;
};

/// Whether the final norm is applied to the tokens behind a block.
enum class FinalNorm : std::uint8_t { applied, left_out };

/// A vision transformer. Parameter names equal the official state_dict's; tensors can be re-seated onto flat buffers
/// through parameters(). Thread-safe for concurrent inference.
class VisionTransformer {
 public:
  explicit VisionTransformer(const VitConfig& config);
  ~VisionTransformer();
  VisionTransformer(const VisionTransformer&) = delete;
  VisionTransformer& operator=(const VisionTransformer&) = delete;

  const VitConfig& config() const noexcept { return config_; }
  /// Every parameter in state_dict order; units: "patch_embed" (with positions and tokens), "blocks.0", ..., "norm".
  std::vector<Parameter> parameters();

  /// See model::linear(); off at first.
  void set_fast_products(bool fast) noexcept { fast_products_ = fast; }
  /// Of each block only the input is kept for the backward pass, which computes it again; off at first.
  void set_checkpoint_activations(bool checkpoint) noexcept { checkpoint_activations_ = checkpoint; }
  /// What every forward calls with the name of a unit before it reads the unit's parameters; nothing at first.
  void set_before_unit(std::function<void(const std::string& unit)> call) { before_unit_ = std::move(call); }

  VitOutput forward(const at::Tensor& images, const at::Tensor& masks = {}) const;
  /// Several crop resolutions in one pass over packed tokens; equal to separate forwards.
  std::vector<VitOutput> forward_packed(const std::vector<VitInput>& inputs) const;
  /// The tokens behind some blocks (counted from 0, each once), shallow to deep whatever their order in the list. Only
  /// without gradients. Throws core::UsageError when there is no such block.
  std::vector<VitOutput> intermediate_layers(const at::Tensor& images, const std::vector<int>& blocks,
                                             FinalNorm norm = FinalNorm::applied) const;
  /// The numbers of the last `n` blocks; all, where there are fewer.
  std::vector<int> last_blocks(int n) const;

 private:
  struct Block;
  void enter(const std::string& unit) const;
  at::Tensor embed(const at::Tensor& images, const at::Tensor& masks) const;
  at::Tensor positions(std::int64_t height, std::int64_t width) const;
  VitOutput split(const at::Tensor& tokens) const;

  VitConfig config_;
  at::Tensor cls_token_, pos_embed_, register_tokens_, mask_token_;
  at::Tensor patch_weight_, patch_bias_;
  std::vector<Block> blocks_;
  at::Tensor norm_weight_, norm_bias_;
  bool fast_products_ = false;
  bool checkpoint_activations_ = false;
  std::function<void(const std::string&)> before_unit_;
};

}  // namespace allosaur::model
