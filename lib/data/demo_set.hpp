#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

/// The demo data: a small world of procedural pictures (data/scene.hpp) to run every phase on, with its ground truth.
///   curated/<class>/  few pictures of each class           train/<class>/, test/<class>/  for k-NN and probes; never
///   in the pool pool/             unlabelled: pictures of the classes, distractors, planted copies of pool pictures,
///   broken files segmentation/{train,val}/{images,labels}/   label maps: 8-bit PNG, 0 = wall, 1 + class
///   depth/{train,val}/{images,depth}/           depth maps: 16-bit PNG, millimetres
///   truth.json        what the files of the pool are
namespace allosaur::data {

/// What was done to the picture that a file of the pool shows.
enum class Planted : std::uint8_t { nothing, exact_copy, cropped, blurred, reencoded, resized, truncated, empty, text };

/// One picture and the files made of it. Everything about it is a pure function of (seed, number) and of these fields.
struct DemoItem {
  enum class Map : std::uint8_t { none, labels, depth };
  std::string path;                   ///< relative to the output folder
  std::uint64_t number = 0;           ///< the scene; a copy has its original's
  std::vector<std::int64_t> classes;  ///< of the objects in it; none: a distractor
  Planted planted = Planted::nothing;
  std::string copy_of;  ///< path of the original, for copies
  Map map = Map::none;
  std::string map_path;
};

/// All items; `scale` multiplies the number of pictures of every part (1: about 3,700 files).
std::vector<DemoItem> plan_demo_set(std::uint64_t seed, double scale);

/// Writes the files of one item below `directory`; their folders exist. Throws core::StorageError.
void write_demo_item(const DemoItem& item, std::uint64_t seed, const std::filesystem::path& directory);

/// The text of truth.json: {"classes": [...], "depth_unit_metres": 0.001, "pool": [{"key": "000012.jpg", "class":
/// "dots" or null, "copy_of": key of the original or null, "planted": how ("exact_copy", "cropped", ..., "truncated",
/// ...) or null}, ...]}.
std::string demo_truth(const std::vector<DemoItem>& items);

}  // namespace allosaur::data
