#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "io/image.hpp"

/// Procedural pictures for the demo data: solid objects before a wall, told apart by the pattern on their surface and
/// by nothing else. Colours drift across each picture, so that neither a colour nor the brightness of a part says what
/// it is.
namespace allosaur::data {

/// The classes: names of surface patterns.
const std::vector<std::string>& scene_classes();

struct Scene {
  io::Image image;
  std::vector<std::uint8_t> labels;  // [height * width]: 0 = wall, 1 + class of the object seen at the pixel
  std::vector<std::uint16_t> depth;  // [height * width]: distance in millimetres
};

/// One object for each entry of `classes`: alone it fills most of the picture, several share it. A pure function of its
/// arguments.
Scene draw_scene(std::uint64_t seed, std::uint64_t number, std::span<const std::int64_t> classes, int width,
                 int height);

/// A picture of nothing of the kind: haze, scribbles, blocks of colour or static. A pure function of its arguments.
io::Image draw_distractor(std::uint64_t seed, std::uint64_t number, int width, int height);

}  // namespace allosaur::data
