#include "data/augment.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace allosaur::data {
namespace {

constexpr double kAspectMin = 3.0 / 4.0, kAspectMax = 4.0 / 3.0;

ColorJitter draw_jitter(const AugmentConfig& config, core::Random& random) {
  ColorJitter jitter;
  jitter.order = {ColorOp::brightness, ColorOp::contrast, ColorOp::saturation, ColorOp::hue};
  for (std::size_t last = jitter.order.size() - 1; last > 0; --last) {
    std::swap(jitter.order[last],
              jitter.order[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(last) + 1))]);
  }
  const auto factor = [&](double spread) { return random.uniform(std::max(0.0, 1 - spread), 1 + spread); };
  jitter.brightness = factor(config.brightness);
  jitter.contrast = factor(config.contrast);
  jitter.saturation = factor(config.saturation);
  jitter.hue = random.uniform(-config.hue, config.hue);
  return jitter;
}

void apply(io::Image& image, const ColorJitter& jitter) {
  for (const ColorOp op : jitter.order) {
    switch (op) {
      case ColorOp::brightness:
        adjust_brightness(image, jitter.brightness);
        break;
      case ColorOp::contrast:
        adjust_contrast(image, jitter.contrast);
        break;
      case ColorOp::saturation:
        adjust_saturation(image, jitter.saturation);
        break;
      case ColorOp::hue:
        adjust_hue(image, jitter.hue);
        break;
    }
  }
}

}  // namespace

CropBox random_resized_crop(core::Random& random, int width, int height, double scale_min, double scale_max) {
  const double area = static_cast<double>(width) * height;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * random.uniform(scale_min, scale_max);
    const double aspect = std::exp(random.uniform(std::log(kAspectMin), std::log(kAspectMax)));
    const auto w = static_cast<int>(std::nearbyint(std::sqrt(target * aspect)));  // half to even, as Python
    const auto h = static_cast<int>(std::nearbyint(std::sqrt(target / aspect)));
    if (w < 1 || w > width || h < 1 || h > height) continue;
    const auto top = static_cast<int>(random.below(height - h + 1));
    const auto left = static_cast<int>(random.below(width - w + 1));
    return {left, top, w, h};
  }
  CropBox box{0, 0, width, height};
  const double aspect = static_cast<double>(width) / height;
  if (aspect < kAspectMin) box.height = static_cast<int>(std::nearbyint(width / kAspectMin));
  if (aspect > kAspectMax) box.width = static_cast<int>(std::nearbyint(height * kAspectMax));
  box.left = (width - box.width) / 2;
  box.top = (height - box.height) / 2;
  return box;
}

CropPlan draw_crop(const AugmentConfig& config, CropKind kind, int width, int height, core::Random& random) {
  const bool local = kind == CropKind::local;
  CropPlan plan;
  plan.box = random_resized_crop(random, width, height, local ? config.local_scale_min : config.global_scale_min,
                                 local ? config.local_scale_max : config.global_scale_max);
  plan.flip = random.chance(config.flip);
  if (random.chance(config.jitter)) plan.jitter = draw_jitter(config, random);
  plan.grayscale = random.chance(config.grayscale);
  const double blur = local ? config.blur_local : kind == CropKind::global1 ? config.blur_global1 : config.blur_global2;
  if (random.chance(blur)) plan.blur_sigma = random.uniform(config.blur_sigma_min, config.blur_sigma_max);
  plan.solarize = kind == CropKind::global2 && random.chance(config.solarize_global2);
  return plan;
}

void render_crop(const io::Image& image, const CropPlan& plan, int size, float* out) {
  const io::Box box{static_cast<double>(plan.box.left), static_cast<double>(plan.box.top),
                    static_cast<double>(plan.box.width), static_cast<double>(plan.box.height)};
  io::Image crop = io::resize_bicubic(image, box, size, size);
  if (plan.flip) flip_horizontally(crop);
  if (plan.jitter) apply(crop, *plan.jitter);
  if (plan.grayscale) convert_to_grayscale(crop);
  if (plan.blur_sigma) gaussian_blur(crop, *plan.blur_sigma);
  if (plan.solarize) solarize(crop);
  normalize(crop, out);
}

void augment(const AugmentConfig& config, const io::Image& image, std::uint64_t seed, std::int64_t position,
             const std::array<float*, 2>& globals, std::span<float* const> locals) {
  const auto key = static_cast<std::uint64_t>(position);
  for (std::size_t c = 0; c < globals.size(); ++c) {
    core::Random random(seed, core::Purpose::global_crop, key, static_cast<std::uint32_t>(c));
    const CropKind kind = c == 0 ? CropKind::global1 : CropKind::global2;
    render_crop(image, draw_crop(config, kind, image.width, image.height, random), config.global_crops_size,
                globals[c]);
  }
  for (std::size_t l = 0; l < locals.size(); ++l) {
    core::Random random(seed, core::Purpose::local_crop, key, static_cast<std::uint32_t>(l));
    render_crop(image, draw_crop(config, CropKind::local, image.width, image.height, random), config.local_crops_size,
                locals[l]);
  }
}

}  // namespace allosaur::data
