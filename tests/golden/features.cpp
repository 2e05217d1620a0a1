// The backbone against features made with the official implementation (tests/data/golden/features_*).
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/files.hpp"
#include "io/safetensors.hpp"
#include "model/weights.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

constexpr double kTolerance = 1e-5;  // relative; float32 against float64 differs by a few 1e-6

double relative(const at::Tensor& ours, const at::Tensor& theirs) {
  return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-12)).item<double>();
}

void compare(const std::string& fixture) {
  const at::NoGradGuard no_grad;
  const auto folder = testing::data_directory() / "golden" / fixture;
  const auto meta = nlohmann::json::parse(core::read_text(folder / "meta.json"));
  model::VitConfig config;
  config.image_size = meta.at("img_size");
  config.patch_size = meta.at("patch_size");
  config.embed_dim = meta.at("embed_dim");
  config.depth = meta.at("depth");
  config.num_heads = meta.at("num_heads");
  config.num_register_tokens = meta.at("num_register_tokens");
  config.swiglu = meta.at("ffn_layer") != "mlp";
  config.interpolate_antialias = meta.at("interpolate_antialias");
  config.interpolate_offset = meta.at("interpolate_offset");
  model::VisionTransformer backbone(config);
  model::assign(backbone.parameters(), io::read_safetensors(folder / "backbone.safetensors").tensors, fixture);
  const io::Safetensors cases = io::read_safetensors(folder / "cases.safetensors");
  for (const auto& size : meta.at("sizes")) {
    const std::string suffix = fmt::format("_{}x{}", size.at(0).get<int>(), size.at(1).get<int>());
    CAPTURE(suffix);
    const auto theirs = [&](const std::string& name) -> const at::Tensor& { return *cases.find(name + suffix); };
    const at::Tensor& images = theirs("image");
    const model::VitOutput plain = backbone.forward(images);
    CHECK(relative(plain.cls, theirs("cls")) < kTolerance);
    CHECK(relative(plain.patches, theirs("patch")) < kTolerance);
    if (config.num_register_tokens > 0) CHECK(relative(plain.registers, theirs("reg")) < kTolerance);
    const model::VitOutput masked = backbone.forward(images, theirs("masks").to(at::kBool));
    CHECK(relative(masked.patches, theirs("masked_patch")) < kTolerance);
    const auto last = backbone.intermediate_layers(images, backbone.last_blocks(2));
    for (int i = 0; i < 2; ++i) {
      CHECK(relative(last[static_cast<std::size_t>(i)].cls, theirs(fmt::format("last2_{}_cls", i))) < kTolerance);
      CHECK(relative(last[static_cast<std::size_t>(i)].patches, theirs(fmt::format("last2_{}_patch", i))) < kTolerance);
    }
  }
}

TEST_CASE("features equal the official ones: MLP, positions by offset") {
  compare("features_mlp_offset");
}
TEST_CASE("features equal the official ones: SwiGLU, registers, antialiased positions") {
  compare("features_swiglu_registers");
}

}  // namespace
}  // namespace allosaur
