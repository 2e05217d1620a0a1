#pragma once
#include <cstdint>

namespace allosaur::data {

/// A place on a surface, in periods of the pattern: `u`, `v` from a random origin, `x`, `y` from the centre of the
/// object.
struct SurfacePoint {
  float u, v, x, y;
};

/// Whether a pattern (an index of scene_classes()) is drawn in its first colour here. `salt` makes irregular patterns
/// different from each other.
bool pattern_at(std::int64_t pattern, const SurfacePoint& point, std::uint32_t salt);

/// Smooth noise in [0, 1] that changes over a distance of 1.
float smooth_noise(float x, float y, std::uint32_t salt);

}  // namespace allosaur::data
