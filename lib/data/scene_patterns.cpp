#include "data/scene_patterns.hpp"

#include <cmath>
#include <numbers>

#include "data/scene.hpp"

namespace allosaur::data {
namespace {

float length(float x, float y) {
  return std::sqrt(x * x + y * y);
}
float fraction(float x) {
  return x - std::floor(x);
}
/// Distance to the middle of the period, in [0, 0.5].
float from_middle(float x) {
  return std::abs(fraction(x) - 0.5F);
}
bool odd(float x) {
  return static_cast<int>(std::floor(x)) % 2 != 0;
}

float lattice_noise(std::int32_t x, std::int32_t y, std::uint32_t salt) {
  std::uint32_t bits = static_cast<std::uint32_t>(x) * 0x9E3779B1U ^ static_cast<std::uint32_t>(y) * 0x85EBCA77U ^ salt;
  bits = (bits ^ bits >> 15) * 0x2C1B3C6DU;
  bits = (bits ^ bits >> 12) * 0x297A2D39U;
  return static_cast<float>(bits >> 8) * 0x1.0p-24F;
}

using Pattern = bool (*)(const SurfacePoint&, std::uint32_t);

bool stripes(const SurfacePoint& p, std::uint32_t) {
  return fraction(p.u) < 0.5F;
}
bool checkers(const SurfacePoint& p, std::uint32_t) {
  return odd(1.3F * p.u) != odd(1.3F * p.v);
}
bool dots(const SurfacePoint& p, std::uint32_t) {
  return length(from_middle(p.u), from_middle(p.v)) < 0.32F;
}
bool rings(const SurfacePoint& p, std::uint32_t salt) {
  return fraction(length(p.x, p.y) + static_cast<float>(salt % 8) / 8) < 0.5F;
}
bool crosses(const SurfacePoint& p, std::uint32_t) {
  const float across = from_middle(p.u), down = from_middle(p.v);
  return (across < 0.12F && down < 0.38F) || (down < 0.12F && across < 0.38F);
}
bool blotches(const SurfacePoint& p, std::uint32_t salt) {
  return 2 * smooth_noise(p.u, p.v, salt) + smooth_noise(2 * p.u, 2 * p.v, ~salt) > 1.5F;
}
bool bricks(const SurfacePoint& p, std::uint32_t) {
  const float row = 1.2F * p.v;
  return from_middle(row) < 0.33F && from_middle(0.6F * p.u + (odd(row) ? 0.5F : 0.0F)) < 0.4F;
}
bool zigzag(const SurfacePoint& p, std::uint32_t) {
  return fraction(p.v + 1.4F * from_middle(0.6F * p.u)) < 0.5F;
}
bool scales(const SurfacePoint& p, std::uint32_t) {
  // Overlapping discs, rows half a period apart: the upper rim of the lowest disc that covers the place is drawn.
  for (float row = std::floor(2 * p.v) + 2; row > std::floor(2 * p.v) - 2; --row) {
    const float across = from_middle(p.u + (odd(row) ? 0.5F : 0.0F));
    const float distance = length(across, p.v - row / 2);
    if (distance < 0.62F) return distance > 0.42F;
  }
  return false;
}
bool pinwheel(const SurfacePoint& p, std::uint32_t salt) {
  const auto arms = static_cast<float>(5 + salt % 3);
  const float turns = std::atan2(p.y, p.x) / (2 * std::numbers::pi_v<float>);
  return fraction(arms * turns + 0.25F * length(p.x, p.y)) < 0.5F;
}
bool triangles(const SurfacePoint& p, std::uint32_t) {
  const float row = p.v;
  const float width = 0.5F * fraction(row);
  return from_middle(p.u + (odd(row) ? 0.5F : 0.0F)) < 0.5F - width;
}
bool grid(const SurfacePoint& p, std::uint32_t) {
  return from_middle(p.u) < 0.13F || from_middle(p.v) < 0.13F;
}

struct Named {
  const char* name;
  Pattern pattern;
};
constexpr Named kPatterns[] = {{"blotches", blotches}, {"bricks", bricks},       {"checkers", checkers},
                               {"crosses", crosses},   {"dots", dots},           {"grid", grid},
                               {"pinwheel", pinwheel}, {"rings", rings},         {"scales", scales},
                               {"stripes", stripes},   {"triangles", triangles}, {"zigzag", zigzag}};

}  // namespace

const std::vector<std::string>& scene_classes() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const Named& named : kPatterns) names.emplace_back(named.name);
    return names;
  }();
  return kNames;
}

bool pattern_at(std::int64_t pattern, const SurfacePoint& point, std::uint32_t salt) {
  return kPatterns[pattern].pattern(point, salt);
}

float smooth_noise(float x, float y, std::uint32_t salt) {
  const float left = std::floor(x), top = std::floor(y);
  const auto ix = static_cast<std::int32_t>(left), iy = static_cast<std::int32_t>(top);
  const auto ease = [](float t) { return t * t * (3 - 2 * t); };
  const float right_share = ease(x - left), bottom_share = ease(y - top);
  const auto row = [&](std::int32_t at) {
    return std::lerp(lattice_noise(ix, at, salt), lattice_noise(ix + 1, at, salt), right_share);
  };
  return std::lerp(row(iy), row(iy + 1), bottom_share);
}

}  // namespace allosaur::data
