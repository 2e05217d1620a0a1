#include "data/scene.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/random.hpp"
#include "data/scene_patterns.hpp"

namespace allosaur::data {
namespace {

using Color = std::array<float, 3>;  // 0 to 255
constexpr float kPi = std::numbers::pi_v<float>;

float draw(core::Random& random, double low, double high) {
  return static_cast<float>(random.uniform(low, high));
}

/// A colour of random hue with about this luma.
Color draw_color(core::Random& random, float luma) {
  Color color;
  for (float& channel : color) channel = draw(random, 0, 255);
  const float shift = luma - (0.299F * color[0] + 0.587F * color[1] + 0.114F * color[2]);
  for (float& channel : color) channel = std::clamp(channel + shift, 0.0F, 255.0F);
  return color;
}

/// A paint whose colour drifts from one hue to another across the picture at the same luma.
struct Paint {
  Color from, to;
  float x, y, phase;

  Paint(core::Random& random, float luma) : from(draw_color(random, luma)), to(draw_color(random, luma)) {
    const float angle = draw(random, 0, 2 * kPi), rate = draw(random, 0.8, 1.6) * kPi;
    x = rate * std::cos(angle);
    y = rate * std::sin(angle);
    phase = draw(random, 0, 2 * kPi);
  }

  Color at(float px, float py) const {
    const float share = 0.5F + 0.5F * std::sin(phase + x * px + y * py);
    Color color;
    for (std::size_t c = 0; c < 3; ++c) color[c] = std::lerp(from[c], to[c], share);
    return color;
  }
};

/// A turn of the plane.
struct Turn {
  float cosine, sine;
  explicit Turn(float angle) : cosine(std::cos(angle)), sine(std::sin(angle)) {}
  float x(float dx, float dy) const { return dx * cosine + dy * sine; }
  float y(float dx, float dy) const { return dy * cosine - dx * sine; }
};

/// A rounded solid with a pattern on it. Lengths are in units of the picture's shorter side.
struct Solid {
  std::int64_t pattern;
  float centre_x, centre_y, radius_x, radius_y, squareness;  // outline: between an ellipse and a rounded rectangle
  Turn tilt;
  float period, shift_u, shift_v;  // of the pattern
  Turn turn;
  float nearest, bulge;  // metres
  Paint light, dark;
  std::uint32_t salt;
};

Solid draw_solid(core::Random& random, std::int64_t pattern, bool alone, float aspect_x, float aspect_y,
                 float brightness) {
  const float low = alone ? 0.5F : 0.24F, high = alone ? 0.6F : 0.34F, margin = alone ? 0.45F : 0.22F;
  const float contrast = draw(random, 90, 160);
  return {.pattern = pattern,
          .centre_x = aspect_x * draw(random, margin, 1 - margin),
          .centre_y = aspect_y * draw(random, margin, 1 - margin),
          .radius_x = aspect_x * draw(random, low, high),
          .radius_y = aspect_y * draw(random, low, high),
          .squareness = draw(random, 0, 1),
          .tilt = Turn(draw(random, -0.5, 0.5)),
          .period = draw(random, 0.14, 0.21),
          .shift_u = draw(random, 0, 8),
          .shift_v = draw(random, 0, 8),
          .turn = Turn(draw(random, -0.45, 0.45)),
          .nearest = draw(random, 0.8, 2.5),
          .bulge = draw(random, 0.2, 0.5),
          .light = Paint(random, brightness + contrast / 2),
          .dark = Paint(random, brightness - contrast / 2),
          .salt = random.bits()};
}

/// Where a ray meets a solid.
struct Hit {
  float depth, slope_x, slope_y;  // slopes of the surface, for its shading
  float x, y;                     // from the solid's centre
};

std::optional<Hit> meet(const Solid& solid, float x, float y) {
  const float dx = x - solid.centre_x, dy = y - solid.centre_y;
  const float across = solid.tilt.x(dx, dy) / solid.radius_x, down = solid.tilt.y(dx, dy) / solid.radius_y;
  const float across2 = across * across, down2 = down * down;
  const float inside = std::lerp(across2 + down2, across2 * across2 + down2 * down2, solid.squareness);
  if (inside >= 1) return std::nullopt;
  const float height = std::sqrt(1 - inside);
  return Hit{solid.nearest + solid.bulge * (1 - height), across, down, dx, dy};
}

Color surface_color(const Solid& solid, const Hit& hit, float x, float y) {
  const float dx = hit.x / solid.period, dy = hit.y / solid.period;
  const SurfacePoint point{solid.turn.x(dx, dy) + solid.shift_u, solid.turn.y(dx, dy) + solid.shift_v, dx, dy};
  return (pattern_at(solid.pattern, point, solid.salt) ? solid.light : solid.dark).at(x, y);
}

/// The wall behind: a plane, brushed with smooth noise.
struct Wall {
  float distance, slope_x, slope_y, grain;
  Paint paint;
  std::uint32_t salt;

  float depth(float x, float y) const { return distance + slope_x * x + slope_y * y; }
  Color at(float x, float y) const {
    Color color = paint.at(x, y);
    const float shade = grain * (smooth_noise(5 * x, 5 * y, salt) - 0.5F);
    for (float& channel : color) channel += shade;
    return color;
  }
};

Wall draw_wall(core::Random& random, float brightness) {
  return {draw(random, 4, 6),   draw(random, -1, 1),       draw(random, -1, 1),
          draw(random, 20, 70), Paint(random, brightness), random.bits()};
}

/// About normal, mean 0 and deviation 1: the sum of four bytes.
float grain_noise(core::Random& random) {
  const std::uint32_t bits = random.bits();
  const auto sum = static_cast<float>((bits & 255) + (bits >> 8 & 255) + (bits >> 16 & 255) + (bits >> 24));
  return (sum - 510.0F) / 147.8F;
}

std::uint8_t to_byte(float value) {
  return static_cast<std::uint8_t>(std::clamp(value, 0.0F, 255.0F) + 0.5F);
}

io::Image blank(int width, int height) {
  return {width, height, 3,
          std::vector<std::uint8_t>(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3)};
}

}  // namespace

Scene draw_scene(std::uint64_t seed, std::uint64_t number, std::span<const std::int64_t> classes, int width,
                 int height) {
  core::Random random(seed, core::Purpose::demo, number);
  const auto unit = static_cast<float>(std::min(width, height));
  const float aspect_x = static_cast<float>(width) / unit, aspect_y = static_cast<float>(height) / unit;
  const float brightness = draw(random, 90, 165);
  const Wall wall = draw_wall(random, draw(random, 60, 195));
  std::vector<Solid> solids;
  for (const std::int64_t pattern : classes) {
    solids.push_back(draw_solid(random, pattern, classes.size() == 1, aspect_x, aspect_y, brightness));
  }
  const float light_x = draw(random, -0.3, 0.3), light_y = draw(random, -0.3, 0.1);
  const float noise = draw(random, 3, 10), haze = draw(random, 120, 200);

  const std::size_t pixels = static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
  Scene scene{blank(width, height), std::vector<std::uint8_t>(pixels), std::vector<std::uint16_t>(pixels)};
  constexpr int kSubsamples = 2;  // a side of a pixel
  for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
    const std::size_t row = pixel / static_cast<std::size_t>(width), column = pixel % static_cast<std::size_t>(width);
    Color sum{};
    for (int sample = 0; sample < kSubsamples * kSubsamples; ++sample) {
      const auto place = [&](std::size_t at, int part) {
        return (static_cast<float>(at) + (static_cast<float>(part) + 0.5F) / kSubsamples) / unit;
      };
      const float x = place(column, sample % kSubsamples), y = place(row, sample / kSubsamples);
      float depth = wall.depth(x, y), light = 1;
      const Solid* seen = nullptr;
      Hit hit{};
      for (const Solid& solid : solids) {
        const std::optional<Hit> met = meet(solid, x, y);
        if (!met || met->depth >= depth) continue;
        hit = *met;
        depth = hit.depth;
        seen = &solid;
      }
      if (seen != nullptr) light = 1 + light_x * hit.slope_x + light_y * hit.slope_y;
      const Color color = seen != nullptr ? surface_color(*seen, hit, x, y) : wall.at(x, y);
      const float clear = std::exp(-0.12F * depth);  // what is far fades into the haze
      for (std::size_t c = 0; c < 3; ++c) sum[c] += std::lerp(haze, light * color[c], clear);
      if (sample == 0) {
        scene.labels[pixel] = static_cast<std::uint8_t>(seen != nullptr ? seen->pattern + 1 : 0);
        scene.depth[pixel] = static_cast<std::uint16_t>(1000 * depth);
      }
    }
    for (std::size_t c = 0; c < 3; ++c) {
      const float mean = sum[c] / (kSubsamples * kSubsamples);
      scene.image.pixels[3 * pixel + c] = to_byte(mean + noise * grain_noise(random));
    }
  }
  return scene;
}

io::Image draw_distractor(std::uint64_t seed, std::uint64_t number, int width, int height) {
  core::Random random(seed, core::Purpose::demo, number);
  const auto unit = static_cast<float>(std::min(width, height));
  enum Kind : std::int64_t { haze, scribble, blocks, statics, kinds };
  const std::int64_t kind = random.below(kinds);
  const Wall wall = draw_wall(random, draw(random, 60, 195));
  const Paint ink(random, draw(random, 20, 235));
  const float noise = kind == statics ? 70.0F : draw(random, 2, 10);
  struct Mark {
    float x, y, across, down;
    Turn turn;
  };
  std::vector<Mark> marks;
  for (std::int64_t left = kind == scribble || kind == blocks ? 4 + random.below(8) : 0; left > 0; --left) {
    marks.push_back({draw(random, 0, 1.2), draw(random, 0, 1.2), draw(random, 0.1, 0.5),
                     kind == blocks ? draw(random, 0.1, 0.4) : draw(random, 0.01, 0.03), Turn(draw(random, 0, kPi))});
  }
  io::Image image = blank(width, height);
  for (std::size_t pixel = 0; pixel < image.pixels.size() / 3; ++pixel) {
    const float x = static_cast<float>(pixel % static_cast<std::size_t>(width)) / unit;
    const float y = static_cast<float>(pixel / static_cast<std::size_t>(width)) / unit;
    Color color = wall.at(x, y);
    for (const Mark& mark : marks) {
      const float dx = x - mark.x, dy = y - mark.y;
      if (std::abs(mark.turn.x(dx, dy)) < mark.across && std::abs(mark.turn.y(dx, dy)) < mark.down)
        color = ink.at(mark.x + x, mark.y + y);
    }
    for (std::size_t c = 0; c < 3; ++c) {
      image.pixels[3 * pixel + c] = to_byte(color[c] + noise * grain_noise(random));
    }
  }
  return image;
}

}  // namespace allosaur::data
