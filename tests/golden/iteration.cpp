// The production step against iterations of the official implementation (tests/data/golden/*/batch_*), and, for options
// that those do not cover, against iterations that make_recording.py computed in plain PyTorch (pytorch_*).
#include <functional>
#include <map>
#include <regex>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "io/safetensors.hpp"
#include "replay/replay.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

std::filesystem::path recording(const char* fixture) {
  return testing::data_directory() / "golden" / fixture;
}

/// `features`: class tokens and patches of both resolutions, and of the teacher; also registers where there are some.
void compare(const std::filesystem::path& folder, int features = 6) {
  std::map<std::string, int> quantities;
  testing::replay(testing::world(), folder, [&](const testing::Quantity& q) {
    ++quantities[q.kind];
    CAPTURE(q.kind);
    CAPTURE(q.name);
    CAPTURE(q.ours);
    CAPTURE(q.theirs);
    CHECK(q.difference <= q.tolerance);
  });
  CHECK(quantities["feature"] == features);
  CHECK(quantities["loss"] >= 5);
  CHECK(quantities["gradient"] > 30);
  CHECK(quantities["norm"] > 30);
}

TEST_CASE("iterations equal the official ones: softmax centring, shared head, MLP") {
  compare(recording("centering_shared_mlp"));
}
TEST_CASE("iterations equal the official ones: Sinkhorn-Knopp, separate heads, SwiGLU, stochastic depth") {
  compare(recording("sinkhorn_separate_swiglu"));
}

// These numbers are not the official implementation's: they come from tests/golden/make_recording.py, whose plain
// PyTorch reproduces both official recordings (its --check).
TEST_CASE("iterations equal those in plain PyTorch: registers, antialiased positions, chunks, linear drop, two heads") {
  compare(recording("pytorch_centering_registers"), 9);
}
TEST_CASE("iterations equal those in plain PyTorch: Sinkhorn-Knopp with a shared head, no LayerScale, no clipping") {
  compare(recording("pytorch_sinkhorn_no_layerscale"));
}

/// A copy of a small recording, to be changed.
class Copy {
 public:
  Copy() { copy(recording("pytorch_centering_registers"), folder_.path(), std::filesystem::copy_options::recursive); }
  const std::filesystem::path& path() const noexcept { return folder_.path(); }
  void change_meta(const std::function<void(nlohmann::json&)>& change) const {
    auto meta = nlohmann::json::parse(core::read_text(path() / "meta.json"));
    change(meta);
    core::write_atomically(path() / "meta.json", meta.dump());
  }
  void change_tensor(const char* kind, const std::string& name, const std::function<void(at::Tensor&)>& change) const {
    const auto file = path() / fmt::format("{}.safetensors", kind);
    io::Safetensors read = io::read_safetensors(file);
    for (auto& [of_tensor, tensor] : read.tensors)
      if (of_tensor == name) change(tensor);
    io::write_safetensors(file, read.tensors);
  }
  /// Replaying ends with a sentence that holds `words`.
  void fails_with(const std::string& words) const {
    std::string message;
    try {
      testing::replay(testing::world(), path(), [](const testing::Quantity&) {});
    } catch (const core::Error& error) {
      message = error.what();
    }
    CAPTURE(message);
    CHECK(message.find(words) != std::string::npos);
  }

 private:
  testing::TemporaryDirectory folder_;
};

TEST_CASE("the number of attention heads follows from the recorded features where it is not stated") {
  const Copy copy;
  copy.change_meta([](nlohmann::json& meta) { meta["config"]["student"].erase("num_heads"); });
  compare(copy.path(), 9);
}

TEST_CASE("a learning rate that is off shows in the updates, and nowhere else") {
  const Copy copy;
  copy.change_meta([](nlohmann::json& meta) {
    for (const char* name : {"lr", "last_layer_lr"})
      meta["iterations"][1][name] = 1.1 * meta["iterations"][1][name].get<double>();
  });
  int updates = 0, others = 0;
  testing::replay(testing::world(), copy.path(), [&](const testing::Quantity& q) {
    // The teacher's change hangs on the student's whole values.
    const bool update = q.kind == "change" && q.name.starts_with("student.");
    if (!q.good()) ++(update ? updates : others);
    if (q.good() && update) FAIL_CHECK(q.name);
  });
  CHECK(updates > 50);
  CHECK(others == 0);
}

TEST_CASE("recordings that are incomplete or malformed are errors that name the file") {
  const Copy copy;
  SUBCASE("no JSON") {
    core::write_atomically(copy.path() / "meta.json", "hello");
    copy.fails_with("meta.json cannot be replayed: parse error");
  }
  SUBCASE("a key is missing") {
    copy.change_meta([](nlohmann::json& meta) { meta["config"]["student"].erase("patch_size"); });
    copy.fails_with("meta.json cannot be replayed: key 'patch_size' not found.");
  }
  SUBCASE("a size is zero") {
    copy.change_meta([](nlohmann::json& meta) { meta["config"]["student"]["patch_size"] = 0; });
    copy.fails_with("meta.json cannot be replayed: patch_size is 0");
  }
  SUBCASE("a file is missing") {
    remove(copy.path() / "init.safetensors");
    copy.fails_with("init.safetensors: cannot open");
  }
  SUBCASE("a file is cut off") {
    resize_file(copy.path() / "batch_0000.safetensors", 1000);
    copy.fails_with("batch_0000.safetensors is not a valid safetensors file");
  }
  SUBCASE("a tensor is missing") {
    std::filesystem::copy_file(copy.path() / "init.safetensors", copy.path() / "batch_0000.safetensors",
                               std::filesystem::copy_options::overwrite_existing);
    copy.fails_with("batch_0000.safetensors cannot be replayed: it holds no tensor collated_global_crops.");
  }
  SUBCASE("a parameter has another shape") {
    copy.change_tensor("init", "teacher.dino_head.mlp.0.bias", [](at::Tensor& t) { t = t.narrow(0, 0, 7); });
    copy.fails_with("tensor teacher.dino_head.mlp.0.bias has the shape [7] instead of [16]");
  }
  SUBCASE("masks are of other crops") {
    copy.change_tensor("batch_0000", "collated_masks", [](at::Tensor& t) { t = t.narrow(0, 0, 3); });
    copy.fails_with("tensor collated_masks has the shape [3, 9] instead of [4, 9]");
  }
  SUBCASE("stochastic depth keeps a crop that is not there") {
    copy.change_tensor("batch_0000", "brange_0002", [](at::Tensor& t) { t.fill_(4); });
    copy.fails_with("tensor brange_0002 does not choose among 4 crops");
  }
}

TEST_CASE("recordings with blocks in chunks and blocks that never drop are replayed too") {
  const auto from = recording("centering_shared_mlp");
  const testing::TemporaryDirectory folder;
  const auto chunked = [](const std::string& name) {
    return std::regex_replace(name, std::regex("blocks\\.([0-9]+)\\."), "blocks.$1.$1.");
  };
  for (const char* kind : {"init", "batch_0000", "grads_0000", "acts_0000"}) {
    const std::string file = fmt::format("{}.safetensors", kind);
    io::Safetensors tensors = io::read_safetensors(from / file);
    for (auto& [name, tensor] : tensors.tensors) name = chunked(name);
    // The second of two blocks keeps all of the 8 global and 32 local crops: as without stochastic depth.
    if (file.starts_with("batch"))
      for (int i = 0; i < 4; ++i)
        tensors.tensors.emplace_back(fmt::format("brange_{:04}", i), at::arange(i % 2 == 0 ? 8 : 32, at::kLong));
    io::write_safetensors(folder.path() / file, tensors.tensors);
  }
  auto meta = nlohmann::json::parse(core::read_text(from / "meta.json"));
  meta["config"]["student"]["drop_path_rate"] = 0.01;
  meta["config"]["student"]["drop_path_uniform"] = false;
  auto& norms = meta["iterations"][0]["grad_norms"];
  nlohmann::json renamed;
  for (const auto& [name, norm] : norms.items()) renamed[chunked(name)] = norm;
  norms = renamed;
  core::write_atomically(folder.path() / "meta.json", meta.dump());
  compare(folder.path());
}

}  // namespace
}  // namespace allosaur
