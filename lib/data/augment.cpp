#include "data/augment.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "kernels/crop_arithmetic.hpp"

namespace allosaur::data {
namespace {

constexpr std::size_t kGlobals = 2;

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

void apply(Crop& crop, const ColorJitter& jitter) {
  for (const ColorOp op : jitter.order) {
    switch (op) {
      case ColorOp::brightness:
        adjust_brightness(crop, jitter.brightness);
        break;
      case ColorOp::contrast:
        adjust_contrast(crop, jitter.contrast);
        break;
      case ColorOp::saturation:
        adjust_saturation(crop, jitter.saturation);
        break;
      case ColorOp::hue:
        adjust_hue(crop, jitter.hue);
        break;
    }
  }
}

int crop_size(const AugmentConfig& config, std::size_t crop) {
  return crop < kGlobals ? config.global_crops_size : config.local_crops_size;
}

template <class Value>
void look_up(const std::uint8_t* planes, std::size_t pixels, const std::vector<Value>& tables, void* out) {
  auto* to = static_cast<Value*>(out);
  for (std::size_t c = 0; c < tables.size() / 256; ++c, planes += pixels, to += pixels) {
    const Value* table = &tables[c * 256];
    for (std::size_t i = 0; i < pixels; ++i) to[i] = table[planes[i]];
  }
}

}  // namespace

CropBox random_resized_crop(const AugmentConfig& config, CropKind kind, int width, int height, core::Random& random) {
  const bool local = kind == CropKind::local;
  const double scale_min = local ? config.local_scale_min : config.global_scale_min;
  const double scale_max = local ? config.local_scale_max : config.global_scale_max;
  const double area = static_cast<double>(width) * height;
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * random.uniform(scale_min, scale_max);
    const double aspect = std::exp(random.uniform(std::log(config.aspect_min), std::log(config.aspect_max)));
    const auto w = static_cast<int>(std::nearbyint(std::sqrt(target * aspect)));  // half to even, as Python
    const auto h = static_cast<int>(std::nearbyint(std::sqrt(target / aspect)));
    if (w < 1 || w > width || h < 1 || h > height) continue;
    const auto top = static_cast<int>(random.below(height - h + 1));
    const auto left = static_cast<int>(random.below(width - w + 1));
    return {left, top, w, h};
  }
  CropBox box{0, 0, width, height};
  const double aspect = static_cast<double>(width) / height;
  if (aspect < config.aspect_min) box.height = static_cast<int>(std::nearbyint(width / config.aspect_min));
  if (aspect > config.aspect_max) box.width = static_cast<int>(std::nearbyint(height * config.aspect_max));
  box.left = (width - box.width) / 2;
  box.top = (height - box.height) / 2;
  return box;
}

CropPlan draw_crop(const AugmentConfig& config, CropKind kind, int width, int height, core::Random& random) {
  CropPlan plan;
  plan.box = random_resized_crop(config, kind, width, height, random);
  plan.flip = random.chance(config.flip);
  if (random.chance(config.jitter)) plan.jitter = draw_jitter(config, random);
  plan.grayscale = random.chance(config.grayscale);
  const double blur = kind == CropKind::local     ? config.blur_local
                      : kind == CropKind::global1 ? config.blur_global1
                                                  : config.blur_global2;
  if (random.chance(blur)) plan.blur_sigma = random.uniform(config.blur_sigma_min, config.blur_sigma_max);
  plan.solarize = kind == CropKind::global2 && random.chance(config.solarize_global2);
  return plan;
}

void draw_crops(const AugmentConfig& config, int width, int height, std::uint64_t seed, std::int64_t position,
                std::vector<CropPlan>& plans) {
  const auto key = static_cast<std::uint64_t>(position);
  plans.clear();
  for (std::uint32_t c = 0; c < kGlobals; ++c) {
    core::Random random(seed, core::Purpose::global_crop, key, c);
    plans.push_back(draw_crop(config, c == 0 ? CropKind::global1 : CropKind::global2, width, height, random));
  }
  for (std::uint32_t l = 0; l < static_cast<std::uint32_t>(config.local_crops_number); ++l) {
    core::Random random(seed, core::Purpose::local_crop, key, l);
    plans.push_back(draw_crop(config, CropKind::local, width, height, random));
  }
}

int decode_denominator(const AugmentConfig& config, std::span<const CropPlan> plans) {
  int denominator = 8;
  for (std::size_t c = 0; c < plans.size(); ++c) {
    const int side = std::min(plans[c].box.width, plans[c].box.height);
    while (denominator > 1 && side < denominator * crop_size(config, c)) denominator /= 2;
  }
  return denominator;
}

kernels::CropRecipe recipe_of(const AugmentConfig& config, const CropPlan& plan) {
  kernels::CropRecipe recipe{.jitter = plan.jitter.has_value(),
                             .grey = plan.grayscale,
                             .blur = plan.blur_sigma.has_value(),
                             .solarize = plan.solarize,
                             .solarize_threshold = config.solarize_threshold};
  if (plan.jitter) {
    std::ranges::copy(plan.jitter->order, recipe.order);
    recipe.brightness = static_cast<float>(plan.jitter->brightness);
    recipe.contrast = static_cast<float>(plan.jitter->contrast);
    recipe.saturation = static_cast<float>(plan.jitter->saturation);
    recipe.hue = hue_turn(plan.jitter->hue);
  }
  if (plan.blur_sigma) std::ranges::copy(blur_weights(*plan.blur_sigma), recipe.blur_weights);
  return recipe;
}

Normalization::Normalization(const AugmentConfig& config) : type_(config.type) {
  if (type_ != c10::kFloat && type_ != c10::kBFloat16 && type_ != c10::kHalf)
    throw std::logic_error(fmt::format("Normalization: crops of {}", c10::toString(type_)));
  const PixelConfig& pixels = config.pixels;
  check_pixels(pixels);
  for (std::size_t c = 0; c < pixels.mean.size(); ++c) {
    const auto mean = static_cast<float>(pixels.mean[c]), deviation = static_cast<float>(pixels.deviation[c]);
    for (int value = 0; value < 256; ++value) {
      floats_.push_back(kernels::normalised(value, mean, deviation));
      halves_.push_back(type_ == c10::kHalf ? c10::Half(floats_.back()).x : c10::BFloat16(floats_.back()).x);
    }
  }
}

void Normalization::write(const std::uint8_t* planes, std::size_t pixels, void* out) const {
  if (type_ == c10::kFloat)
    look_up(planes, pixels, floats_, out);
  else
    look_up(planes, pixels, halves_, out);
}

Augmenter::Augmenter(const AugmentConfig& config) : config_(config), normalization_(config) {}

std::span<const CropPlan> Augmenter::augment(std::span<const std::byte> bytes, std::uint64_t seed,
                                             std::int64_t position, std::span<void* const> crops) {
  const io::ImageInfo info = io::probe_image(bytes);
  draw_crops(config_, info.width, info.height, seed, position, plans_);
  const bool scalable = config_.dct_scaling && info.format == io::ImageFormat::jpeg && info.channels <= 3;
  const int denominator = scalable ? decode_denominator(config_, plans_) : 1;
  io::decode_image(bytes, decode_options(config_.pixels, denominator), image_);
  const auto reduced = [&](int side) { return (side + denominator - 1) / denominator; };
  if (image_.width != reduced(info.width) || image_.height != reduced(info.height)) {
    throw core::InputError(fmt::format("The image has {} x {} pixels, but its header says {} x {}.", image_.width,
                                       image_.height, reduced(info.width), reduced(info.height)));
  }
  for (std::size_t c = 0; c < plans_.size(); ++c)
    render(image_, plans_[c], denominator, crop_size(config_, c), crops[c]);
  return plans_;
}

void Augmenter::render(const io::Image& image, const CropPlan& plan, int denominator, int size, void* out) {
  const double fraction = 1.0 / denominator;
  const io::Box box{plan.box.left * fraction, plan.box.top * fraction, plan.box.width * fraction,
                    plan.box.height * fraction};
  if (!config_.finish) return resizer_.planar(image, box, size, size, plan.flip, static_cast<std::uint8_t*>(out));
  crop_.resize(image.channels, size, size);
  resizer_.planar(image, box, size, size, plan.flip, crop_.values.data());
  if (plan.jitter) apply(crop_, *plan.jitter);
  if (plan.grayscale) convert_to_grayscale(crop_);
  if (plan.blur_sigma) gaussian_blur(crop_, *plan.blur_sigma);
  if (plan.solarize) solarize(crop_, config_.solarize_threshold);
  normalization_.write(crop_, out);
}

}  // namespace allosaur::data
