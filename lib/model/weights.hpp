#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "io/safetensors.hpp"
#include "io/sharded_array.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::model {

/// Loads a backbone from a file of weights: `.safetensors` (ours, or an official or training state_dict converted), an
/// official or training file of PyTorch (`.pth`), or the folder of one of our checkpoints (the teacher). The shape of
/// the network is read from the file's metadata where present, else from its tensors (heads of 64 dimensions, as all
/// published models). Strict: a missing, unknown or ill-shaped tensor is a core::StorageError naming it.
std::unique_ptr<VisionTransformer> load_backbone(const std::filesystem::path& file);

/// A backbone at its initial values: a pure function of (config, seed), the same as pretraining starts from.
std::unique_ptr<VisionTransformer> new_backbone(const VitConfig& config, std::uint64_t seed);

/// Writes a backbone as safetensors with the official names (float32) and its configuration as metadata.
void save_backbone(const std::filesystem::path& file, VisionTransformer& backbone);

/// A hash of all weights (16 hexadecimal digits), to recognise features made by another network.
std::string fingerprint(VisionTransformer& backbone);

/// Copies `source` into `parameters` by name. Throws core::StorageError listing what is missing, unknown or ill-shaped.
void assign(const std::vector<Parameter>& parameters, const io::NamedTensors& source, const std::string& where);

/// Throws core::UsageError when the network whose weights `where` holds does not read images of `data.channels`.
void require_channels(const VitConfig& config, int channels, const std::string& where);

/// Resizes `<prefix>pos_embed` among the tensors to the grid of `config` where that is another one (bicubic, by size).
void resize_positions(io::NamedTensors& tensors, const std::string& prefix, const VitConfig& config);

/// The configuration as JSON text, as it is stored in weight files and checkpoints, and back.
std::string to_json(const VitConfig& config);
VitConfig vit_from_json(const std::string& text);

/// Turns the names of a backbone found in official or training state_dicts into the flat official ones: picks the
/// entry `model` and the teacher where there are others, drops `module.`, `backbone.`, drops heads, and unfolds
/// `blocks.<chunk>.<i>.`.
io::NamedTensors backbone_tensors(const io::NamedTensors& tensors);

/// Where each parameter of a sharded network lies in a checkpoint: JSON text {"array": [["name", [shape], offset],
/// ...]}.
struct Placement {
  std::string array, name;
  std::vector<std::int64_t> shape;
  std::int64_t offset;  // elements from the start of the array
};
std::string to_json(const std::vector<Placement>& layout);
std::vector<Placement> placements_from_json(const std::string& text);

/// Local. The parameters of one network of a checkpoint ("student" or "teacher") whose units begin with `unit_prefix`.
io::NamedTensors checkpoint_tensors(const io::ShardedReader& checkpoint, const std::string& network,
                                    const std::string& unit_prefix = "");

/// Local. Opens the checkpoint in a folder; throws core::UsageError that says what to name where there is none.
io::ShardedReader open_checkpoint(const std::filesystem::path& folder);

/// File of a checkpoint folder that holds everything, and the attributes in it that describe the network.
inline constexpr const char* kCheckpointFile = "state.h5";
inline constexpr const char* kVitAttribute = "backbone";
inline constexpr const char* kLayoutAttribute = "teacher_layout";

}  // namespace allosaur::model
