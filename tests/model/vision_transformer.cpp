#include "model/vision_transformer.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "core/error.hpp"
#include "model/head.hpp"
#include "model/linear.hpp"
#include "model/weights.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

model::VitConfig tiny() {
  model::VitConfig config;
  config.image_size = 16;
  config.patch_size = 4;
  config.embed_dim = 24;
  config.depth = 2;
  config.num_heads = 3;
  config.layer_scale = 1.0;
  return config;
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST_CASE("presets have the published numbers of parameters") {
  const auto count = [](model::VitConfig config, int registers) {
    config.image_size = 518;
    config.num_register_tokens = registers;
    model::VisionTransformer backbone(config);
    std::int64_t total = 0;
    for (const model::Parameter& parameter : backbone.parameters()) total += parameter.tensor->numel();
    return total;
  };
  CHECK(count(model::vit_preset("vit_small"), 0) == 22'056'576);
  CHECK(count(model::vit_preset("vit_small"), 4) == 22'058'112);
  CHECK(count(model::vit_preset("vit_base"), 0) == 86'580'480);
  CHECK_THROWS_AS(model::vit_preset("vit_smal"), core::UsageError);
}

TEST_CASE("SwiGLU widths are the published ones") {
  model::VitConfig config;
  config.swiglu = true;
  for (const auto& [dim, hidden] :
       {std::pair{384, 1024}, std::pair{768, 2048}, std::pair{1024, 2736}, std::pair{1536, 4096}}) {
    config.embed_dim = dim;
    CHECK(config.hidden_dim() == hidden);
  }
}

TEST_CASE("a packed forward equals separate ones, and keeping all rows equals no stochastic depth") {
  const at::NoGradGuard no_grad;
  const auto backbone = model::new_backbone(tiny(), 1);
  at::manual_seed(0);
  const at::Tensor large = at::randn({3, 3, 16, 16}), small = at::randn({5, 3, 8, 8});
  const at::Tensor masks = at::rand({3, 16}) < 0.4;
  const auto packed = backbone->forward_packed({{large, masks, {}, {}}, {small, {}, {}, {}}});
  CHECK(difference(packed[0].patches, backbone->forward(large, masks).patches) < 1e-5);
  CHECK(difference(packed[1].cls, backbone->forward(small).cls) < 1e-5);

  const std::vector<at::Tensor> all_large(4, at::arange(3)), all_small(4, at::arange(5).flip(0));
  const auto kept = backbone->forward_packed({{large, masks, all_large, {}}, {small, {}, all_small, {}}});
  CHECK(difference(packed[0].cls, kept[0].cls) < 1e-5);
  CHECK(difference(packed[1].patches, kept[1].patches) < 1e-5);

  // Branches that drop nothing, beside others that do.
  const auto rows = [](std::vector<std::int64_t> list) { return at::tensor(list, at::kLong); };
  const at::Tensor all_3 = at::arange(3), all_5 = at::arange(5), none, chosen = rows({17, 0, 5});
  for (const at::Tensor& patches : {none, chosen}) {
    const auto run = [&](const at::Tensor& large_rows, const at::Tensor& small_rows) {
      return backbone->forward_packed(
          {{large, masks, {large_rows, rows({2, 0}), large_rows, large_rows}, patches},
           {small, {}, {small_rows, small_rows, rows({4, 1}), small_rows}, patches.defined() ? rows({1}) : none}});
    };
    const auto expected = run(all_3, all_5), found = run({}, {});
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(difference(expected[i].cls, found[i].cls) < 1e-5);
      CHECK(difference(expected[i].patches, found[i].patches) < 1e-5);
    }
  }
}

TEST_CASE("chosen patches are those of the whole output, with the same gradients") {
  for (const bool depth : {false, true})
    for (const bool checkpoint : {false, true}) {
      at::manual_seed(0);
      const at::Tensor large = at::randn({3, 3, 16, 16}), small = at::randn({5, 3, 8, 8});
      const at::Tensor masks = at::rand({3, 16}) < 0.4, chosen = at::tensor({1, 7, 30, 47}, at::kLong);
      const at::Tensor weight = at::randn({3 + 4 + 5, 24});
      const auto rows = [](const std::vector<std::int64_t>& list) { return at::tensor(list, at::kLong); };
      std::vector<at::Tensor> kept_large, kept_small;
      if (depth) {
        kept_large = {rows({2, 0}), rows({1, 2}), rows({0, 1}), rows({2, 1})};
        kept_small = {rows({4, 0, 3}), rows({1, 2, 4}), rows({0, 1, 2}), rows({2, 4, 0})};
      }
      std::vector<at::Tensor> outputs, gradients[2];
      for (const bool all : {false, true}) {
        const auto backbone = model::new_backbone(
            [] {
              model::VitConfig config = tiny();
              config.num_register_tokens = 2;
              return config;
            }(),
            1);
        backbone->set_checkpoint_activations(checkpoint);
        for (const model::Parameter& parameter : backbone->parameters()) parameter.tensor->requires_grad_(true);
        const at::Tensor none = all ? at::Tensor() : at::empty({0}, at::kLong);
        const auto result = backbone->forward_packed(
            {{large, masks, kept_large, all ? at::Tensor() : chosen}, {small, {}, kept_small, none}});
        const at::Tensor patches = all ? result[0].patches.flatten(0, 1).index_select(0, chosen) : result[0].patches;
        CHECK(result[1].patches.size(0) == (all ? 5 : 0));
        outputs.push_back(at::cat({result[0].cls, patches, result[1].cls}));
        (outputs.back() * weight).sum().backward();
        for (const model::Parameter& parameter : backbone->parameters())
          gradients[all].push_back(parameter.tensor->grad());
      }
      CHECK(difference(outputs[0], outputs[1]) < 1e-5);
      for (std::size_t i = 0; i < gradients[0].size(); ++i)
        CHECK(difference(gradients[0][i], gradients[1][i]) <= 1e-5 * (1 + gradients[1][i].abs().max().item<double>()));
    }
  const auto backbone = model::new_backbone(tiny(), 1);
  const at::Tensor image = at::randn({1, 3, 16, 16});
  CHECK_THROWS_AS(backbone->forward_packed({{image, {}, {}, at::empty({0}, at::kLong)}, {image, {}, {}, {}}}),
                  core::UsageError);
}

TEST_CASE("every forward announces its units, in order and once") {
  const at::NoGradGuard no_grad;
  const auto backbone = model::new_backbone(tiny(), 1);
  std::vector<std::string> seen, expected;
  for (const model::Parameter& parameter : backbone->parameters())
    if (expected.empty() || expected.back() != parameter.unit) expected.push_back(parameter.unit);
  backbone->set_before_unit([&](const std::string& unit) { seen.push_back(unit); });
  const at::Tensor images = at::randn({1, 3, 16, 16});
  backbone->forward(images);
  CHECK(seen == expected);
  seen.clear();
  backbone->intermediate_layers(images, backbone->last_blocks(1));
  CHECK(seen == expected);
}

TEST_CASE("the tokens behind any blocks, with the final norm and without") {
  model::VitConfig config = tiny();
  config.depth = 3;
  config.num_register_tokens = 2;
  const auto backbone = model::new_backbone(config, 1);
  const at::Tensor images = at::randn({2, 3, 16, 16});
  CHECK_THROWS_AS(backbone->intermediate_layers(images, {2}), std::logic_error);  // gradients are on
  const at::NoGradGuard no_grad;
  // A norm that shows.
  for (const model::Parameter& parameter : backbone->parameters())
    if (parameter.unit == "norm") parameter.tensor->uniform_(0.5, 2);
  std::vector<at::Tensor> norm;
  for (const model::Parameter& parameter : backbone->parameters())
    if (parameter.unit == "norm") norm.push_back(*parameter.tensor);
  const auto raw = backbone->intermediate_layers(images, {2, 0}, model::FinalNorm::left_out);
  const auto normed = backbone->intermediate_layers(images, {0, 2});
  const auto last = backbone->intermediate_layers(images, backbone->last_blocks(7));
  REQUIRE(raw.size() == 2);
  REQUIRE(normed.size() == 2);
  REQUIRE(last.size() == 3);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto by_hand = [&](const at::Tensor& tokens) {
      return at::layer_norm(tokens, {config.embed_dim}, norm[0], norm[1], 1e-6);
    };
    CHECK(difference(by_hand(raw[i].cls), normed[i].cls) < 1e-5);
    CHECK(difference(by_hand(raw[i].registers), normed[i].registers) < 1e-5);
    CHECK(difference(by_hand(raw[i].patches), normed[i].patches) < 1e-5);
    CHECK(difference(last[2 * i].patches, normed[i].patches) < 1e-6);
  }
  CHECK(difference(raw[0].patches, raw[1].patches) > 1e-3);
  CHECK(difference(normed[1].cls, backbone->forward(images).cls) < 1e-5);
  std::vector<std::string> seen;
  backbone->set_before_unit([&](const std::string& unit) { seen.push_back(unit); });
  backbone->intermediate_layers(images, {1}, model::FinalNorm::left_out);
  CHECK(seen == std::vector<std::string>{"patch_embed", "blocks.0", "blocks.1"});  // and no more than is needed
  for (const std::vector<int>& wrong : std::vector<std::vector<int>>{{3}, {-1}, {1, 1}})
    CHECK_THROWS_WITH_AS(backbone->intermediate_layers(images, wrong), doctest::Contains("different ones from 0 to 2"),
                         core::UsageError);
}

TEST_CASE("stochastic depth works in 16 bits") {
  const auto backbone = model::new_backbone(tiny(), 1), narrow = model::new_backbone(tiny(), 1);
  for (const model::Parameter& parameter : narrow->parameters())
    *parameter.tensor = parameter.tensor->to(at::kBFloat16);
  at::manual_seed(0);
  const std::vector<at::Tensor> kept(4, at::tensor({2, 0}, at::kLong));
  const at::Tensor images = at::randn({3, 3, 16, 16});
  const at::Tensor exact = backbone->forward_packed({{images, {}, kept, {}}})[0].patches;
  const at::Tensor rounded = narrow->forward_packed({{images, {}, kept, {}}})[0].patches;
  CHECK((exact - rounded).norm().item<double>() < 0.03 * exact.norm().item<double>());
}

TEST_CASE("initial values depend on the seed and the name alone") {
  const auto a = model::new_backbone(tiny(), 7), b = model::new_backbone(tiny(), 7), c = model::new_backbone(tiny(), 8);
  CHECK(model::fingerprint(*a) == model::fingerprint(*b));
  CHECK(model::fingerprint(*a) != model::fingerprint(*c));
}

TEST_CASE("weights survive a file, and what does not fit is named") {
  const testing::TemporaryDirectory folder;
  const auto file = folder.path() / "backbone.safetensors";
  const auto backbone = model::new_backbone(tiny(), 3);
  model::save_backbone(file, *backbone);
  CHECK(model::fingerprint(*model::load_backbone(file)) == model::fingerprint(*backbone));

  io::Safetensors content = io::read_safetensors(file);
  content.tensors.pop_back();
  io::write_safetensors(file, content.tensors, content.metadata);
  CHECK_THROWS_WITH_AS(model::load_backbone(file), doctest::Contains("is missing"), core::StorageError);
}

TEST_CASE("networks without biases, in files too") {
  const testing::TemporaryDirectory folder;
  const auto file = folder.path() / "backbone.safetensors";
  for (const bool swiglu : {false, true}) {
    model::VitConfig config = tiny();
    config.num_heads = 1;
    config.swiglu = swiglu;
    config.qkv_bias = config.proj_bias = config.ffn_bias = false;
    const auto backbone = model::new_backbone(config, 3);
    model::save_backbone(file, *backbone);
    io::Safetensors content = io::read_safetensors(file);
    CHECK(content.find("blocks.0.attn.qkv.bias") == nullptr);
    CHECK(model::fingerprint(*model::load_backbone(file)) == model::fingerprint(*backbone));
    io::write_safetensors(file, content.tensors, {});  // it is seen from the weights, then
    CHECK(model::fingerprint(*model::load_backbone(file)) == model::fingerprint(*backbone));
    content.tensors.emplace_back("blocks.1.attn.qkv.bias", at::zeros({72}));
    io::write_safetensors(file, content.tensors, {});
    CHECK_THROWS_WITH_AS(model::load_backbone(file), doctest::Contains("blocks.1.attn.qkv.bias"), core::StorageError);
  }
}

TEST_CASE("weights of PyTorch: the teacher of a training, half and chunked, and a model beside its optimiser") {
  const auto folder = testing::data_directory() / "weights";
  const auto teacher = model::load_backbone(folder / "teacher_checkpoint.pth"),
             model = model::load_backbone(folder / "model.pth");
  CHECK(teacher->config().depth == 2);
  CHECK(teacher->config().image_size == 4);
  CHECK(model::fingerprint(*teacher) == model::fingerprint(*model));  // the values are exact in float16
  for (const model::Parameter& parameter : teacher->parameters()) {
    CAPTURE(parameter.name);
    const std::int64_t first = parameter.name.starts_with("blocks.1.") ? 1 : 0;
    const at::Tensor values = parameter.tensor->flatten();
    CHECK((values.scalar_type() == at::kFloat));
    CHECK(at::equal(values, at::arange(first, first + values.numel()) / 8));
  }
  CHECK_THROWS_WITH_AS(model::load_backbone(folder / "state_dict.pth"),
                       doctest::Contains("no tensor \"patch_embed.proj.weight\" of 4 dimensions: it is not a DINOv2"),
                       core::StorageError);
}

TEST_CASE("networks of other channels: a kernel a channel, in files too") {
  const testing::TemporaryDirectory folder;
  const auto file = folder.path() / "backbone.safetensors";
  model::VitConfig config = tiny();
  config.in_channels = 5;
  config.num_heads = 1;
  const auto backbone = model::new_backbone(config, 3);
  const at::NoGradGuard no_grad;
  at::Tensor images = at::randn({2, 5, 16, 16});
  const at::Tensor tokens = backbone->forward(images).patches;
  images.select(1, 4).add_(1);
  CHECK_FALSE(backbone->forward(images).patches.equal(tokens));
  CHECK_THROWS_WITH_AS(backbone->forward(at::zeros({2, 3, 16, 16})),
                       doctest::Contains("Images have 3 channels, but the network reads 5"), core::UsageError);

  model::save_backbone(file, *backbone);
  io::Safetensors content = io::read_safetensors(file);
  CHECK((content.find("patch_embed.proj.weight")->sizes() == at::IntArrayRef{24, 5, 4, 4}));
  CHECK(model::fingerprint(*model::load_backbone(file)) == model::fingerprint(*backbone));
  io::write_safetensors(file, content.tensors, {});  // the channels are seen from the weights, then
  const auto loaded = model::load_backbone(file);
  CHECK(loaded->forward(images).patches.equal(backbone->forward(images).patches));

  CHECK_NOTHROW(model::require_channels(loaded->config(), 5, "weights"));
  CHECK_THROWS_WITH_AS(model::require_channels(loaded->config(), 3, "weights"),
                       doctest::Contains("The network in weights reads images of 5 channels, but data.channels is 3"),
                       core::UsageError);
  std::string description = model::to_json(config);
  CHECK(model::vit_from_json(description).in_channels == 5);
  const std::string said = "\"in_channels\":5,";
  description.erase(description.find(said), said.size());
  CHECK(model::vit_from_json(description).in_channels == 3);
}

TEST_CASE("names of training state_dicts become the flat official ones") {
  const at::Tensor t = at::zeros({1});
  const auto tensors = model::backbone_tensors({{"student.backbone.norm.weight", t},
                                                {"teacher.backbone.blocks.1.5.norm1.weight", t},
                                                {"teacher.backbone.blocks.0.norm1.weight", t},
                                                {"teacher.dino_head.mlp.0.weight", t}});
  REQUIRE(tensors.size() == 2);
  CHECK(tensors[0].first == "blocks.5.norm1.weight");
  CHECK(tensors[1].first == "blocks.0.norm1.weight");
  for (const char* name :
       {"model.teacher.backbone.norm.bias", "model.module.norm.bias", "module.teacher.backbone.norm.bias",
        "teacher.module.backbone.norm.bias", "backbone.module.norm.bias", "module.backbone.norm.bias"}) {
    CAPTURE(name);
    CHECK(model::backbone_tensors({{name, t}}).front().first == "norm.bias");
  }
}

TEST_CASE("fast linear layers have the gradients of exact ones up to bfloat16's rounding") {
  at::manual_seed(1);
  const at::Tensor x = at::randn({6, 32, 64}), w = at::randn({48, 64}), b = at::randn({48}), g = at::randn({6, 32, 48});
  const auto run = [&](bool fast) {
    std::vector<at::Tensor> leaves{x.clone().requires_grad_(true), w.clone().requires_grad_(true),
                                   b.clone().requires_grad_(true)};
    (model::linear(leaves[0], leaves[1], leaves[2], fast) * g).sum().backward();
    return std::vector<at::Tensor>{leaves[0].grad(), leaves[1].grad(), leaves[2].grad()};
  };
  const auto exact = run(false), fast = run(true);
  for (std::size_t i = 0; i < exact.size(); ++i)
    CHECK((exact[i] - fast[i]).norm().item<double>() < 0.01 * exact[i].norm().item<double>());
}

TEST_CASE("a head's embeddings and prototypes are unit vectors at first") {
  model::ProjectionHead head({.in_dim = 24, .hidden_dim = 16, .bottleneck_dim = 8, .layers = 3, .prototypes = 10});
  for (const model::Parameter& parameter : head.parameters()) model::initialise(parameter, "head.", 0);
  CHECK(difference(head.embed(at::randn({5, 24})).norm(2, 1), at::ones({5})) < 1e-5);
  CHECK(difference(head.prototypes().effective(at::kFloat).norm(2, 1), at::ones({10})) < 1e-5);
}

}  // namespace
}  // namespace allosaur
