#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "core/random.hpp"
#include "io/image.hpp"

/// The published multi-crop augmentation, on 8-bit RGB images with the arithmetic of Pillow and torchvision
/// (facts 3.1). What is done to a crop is drawn first (CropPlan, a pure function of its key), then carried out
/// (render_crop).
namespace allosaur::data {

/// Parameters of the published multi-crop augmentation (facts: dinov2/data/augmentations.py). Probabilities of blur are
/// the effective ones of the published code, which are the nominal ones inverted.
struct AugmentConfig {
  int global_crops_size = 224, local_crops_size = 96, local_crops_number = 8;
  double global_scale_min = 0.32, global_scale_max = 1.0;
  double local_scale_min = 0.05, local_scale_max = 0.32;
  double flip = 0.5;
  double jitter = 0.8, brightness = 0.4, contrast = 0.4, saturation = 0.2, hue = 0.1;
  double grayscale = 0.2;
  double blur_global1 = 0.0, blur_global2 = 0.9, blur_local = 0.5;
  double blur_sigma_min = 0.1, blur_sigma_max = 2.0;
  double solarize_global2 = 0.2;
};

/// A rectangle of whole pixels inside an image.
struct CropBox {
  int left = 0, top = 0, width = 0, height = 0;
};

/// torchvision's RandomResizedCrop: a box of area U(scale) of the image and log-uniform aspect ratio in [3/4, 4/3];
/// after ten draws that do not fit, the largest centred box within these ratios.
CropBox random_resized_crop(core::Random& random, int width, int height, double scale_min, double scale_max);

enum class ColorOp : std::uint8_t { brightness, contrast, saturation, hue };

/// The colour jitter of one crop: every operation once, in this order.
struct ColorJitter {
  std::array<ColorOp, 4> order{};
  double brightness = 1, contrast = 1, saturation = 1, hue = 0;
};

/// Everything that is done to one crop.
struct CropPlan {
  CropBox box;
  bool flip = false;
  std::optional<ColorJitter> jitter;
  bool grayscale = false;
  std::optional<double> blur_sigma;
  bool solarize = false;
};

enum class CropKind : std::uint8_t { global1, global2, local };

/// Draws what is done to one crop of an image of this size.
CropPlan draw_crop(const AugmentConfig& config, CropKind kind, int width, int height, core::Random& random);

/// Carries a plan out on an RGB image: f32 [3, size, size] into `out`, normalised with the ImageNet mean and deviation.
void render_crop(const io::Image& image, const CropPlan& plan, int size, float* out);

/// All crops of the image at global sample position `position`: global crop c goes to globals[c], local crop l to
/// locals[l], each as render_crop() writes it. A pure function of (config, image, seed, position).
void augment(const AugmentConfig& config, const io::Image& image, std::uint64_t seed, std::int64_t position,
             const std::array<float*, 2>& globals, std::span<float* const> locals);

// The single operations, in place on RGB images. `factor` 1 (hue: 0) leaves the image as it is.
void adjust_brightness(io::Image& image, double factor);  ///< blend with black
void adjust_contrast(io::Image& image, double factor);    ///< blend with the mean grey of the image
void adjust_saturation(io::Image& image, double factor);  ///< blend with the grey image
void adjust_hue(io::Image& image, double shift);     ///< turns the hue by `shift` of the circle, in Pillow's 8-bit HSV
void convert_to_grayscale(io::Image& image);         ///< ITU-R 601-2 luma in all three channels
void gaussian_blur(io::Image& image, double sigma);  ///< 9 x 9, borders reflected
void solarize(io::Image& image);                     ///< inverts values of 128 and more
void flip_horizontally(io::Image& image);

/// f32 [3, height, width] into `out`: (value / 255 - mean) / deviation per channel, ImageNet's.
void normalize(const io::Image& image, float* out);

}  // namespace allosaur::data
