// The production step against iterations of the official implementation (tests/data/golden/*/batch_*).
#include <regex>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "core/files.hpp"
#include "io/safetensors.hpp"
#include "replay/replay.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

std::filesystem::path recording(const char* fixture) {
  return testing::data_directory() / "golden" / fixture;
}

void compare(const std::filesystem::path& folder) {
  std::map<std::string, int> quantities;
  testing::replay(testing::world(), folder, [&](const testing::Quantity& q) {
    ++quantities[q.kind];
    CAPTURE(q.kind);
    CAPTURE(q.name);
    CAPTURE(q.ours);
    CAPTURE(q.theirs);
    CHECK(q.difference <= q.tolerance);
  });
  CHECK(quantities["feature"] == 6);  // class tokens and patches of both resolutions, and of the teacher
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
