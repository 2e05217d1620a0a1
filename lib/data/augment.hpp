#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <c10/core/ScalarType.h>

#include "core/random.hpp"
#include "data/color.hpp"
#include "data/pixels.hpp"
#include "io/image.hpp"
#include "io/image_resize.hpp"
#include "kernels/kernels.hpp"

/// The published multi-crop augmentation, on 8-bit images with the arithmetic of Pillow and torchvision
/// (dinov2/data/augmentations.py). What is done to a crop is drawn first (CropPlan, a pure function of its key), then
/// carried out (Augmenter).
namespace allosaur::data {

/// Parameters of the published multi-crop augmentation (dinov2/data/augmentations.py). Probabilities of blur are
/// the effective ones of the published code, which are the nominal ones inverted.
struct AugmentConfig {
  /// Of images and crops. Other than 3 channels: saturation, hue and grey are drawn as for 3, but left out.
  PixelConfig pixels = {};
  int global_crops_size = 224, local_crops_size = 96, local_crops_number = 8;
  double global_scale_min = 0.32, global_scale_max = 1.0;
  double local_scale_min = 0.05, local_scale_max = 0.32;
  double aspect_min = 3.0 / 4.0, aspect_max = 4.0 / 3.0;
  double flip = 0.5;
  double jitter = 0.8, brightness = 0.4, contrast = 0.4, saturation = 0.2, hue = 0.1;
  double grayscale = 0.2;
  double blur_global1 = 0.0, blur_global2 = 0.9, blur_local = 0.5;
  double blur_sigma_min = 0.1, blur_sigma_max = 2.0;
  double solarize_global2 = 0.2;
  int solarize_threshold = 128;
  /// Decode a JPEG at the smallest fraction of its size that serves every crop. False: whole, as published.
  bool dct_scaling = true;
  /// Of finished crops: float32, bfloat16 or float16.
  c10::ScalarType type = c10::kFloat;
  /// False: crops are uint8 values, cropped, resized and flipped only; kernels::FinishCrops does the rest.
  bool finish = true;

  c10::ScalarType written_type() const { return finish ? type : c10::kByte; }
};

/// A rectangle of whole pixels inside an image.
struct CropBox {
  int left = 0, top = 0, width = 0, height = 0;
};

using kernels::ColorOp;

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

/// torchvision's RandomResizedCrop: a box of area U(scale) of the image and log-uniform aspect ratio; after ten draws
/// that do not fit, the largest centred box within the ratios.
CropBox random_resized_crop(const AugmentConfig& config, CropKind kind, int width, int height, core::Random& random);

/// Draws what is done to one crop of an image of this size.
CropPlan draw_crop(const AugmentConfig& config, CropKind kind, int width, int height, core::Random& random);

/// All crops of the image at global sample position `position`: the two global ones, then the local ones.
void draw_crops(const AugmentConfig& config, int width, int height, std::uint64_t seed, std::int64_t position,
                std::vector<CropPlan>& plans);

/// The largest of 1, 2, 4 and 8 that every box can be divided by and still have at least its crop's size both ways.
int decode_denominator(const AugmentConfig& config, std::span<const CropPlan> plans);

/// What is left to do to a crop that is not finished.
kernels::CropRecipe recipe_of(const AugmentConfig& config, const CropPlan& plan);

/// Turns crops into what a network reads: [channels, height, width] of AugmentConfig::type.
class Normalization {
 public:
  /// Throws core::UsageError as check_pixels() does.
  explicit Normalization(const AugmentConfig& config);
  /// (value / 255 - mean) / deviation per channel in float32, then rounded.
  void write(const Crop& crop, void* out) const { write(crop.values.data(), crop.pixels(), out); }
  /// The same of planes of so many pixels each, one a channel.
  void write(const std::uint8_t* planes, std::size_t pixels, void* out) const;

 private:
  c10::ScalarType type_;
  std::vector<float> floats_;          // [channels, 256]: of each value
  std::vector<std::uint16_t> halves_;  // the same in 16 bits
};

/// What a thread needs to augment: its memory is kept from image to image, so that none is allocated once it has grown
/// to the largest. For one thread at a time.
class Augmenter {
 public:
  /// Throws core::UsageError as Normalization does.
  explicit Augmenter(const AugmentConfig& config);

  /// Decodes an image and writes all its crops, [channels, size, size] of AugmentConfig::written_type() each: crop c of
  /// draw_crops() to crops[c]. Returns their plans, which stay until the next call. A pure function of (config, bytes,
  /// seed, position). Throws core::InputError when the image is broken.
  std::span<const CropPlan> augment(std::span<const std::byte> bytes, std::uint64_t seed, std::int64_t position,
                                    std::span<void* const> crops);

  /// Carries out a plan on an image that was decoded at 1/denominator of the size the plan was drawn for.
  void render(const io::Image& image, const CropPlan& plan, int denominator, int size, void* out);

 private:
  AugmentConfig config_;
  Normalization normalization_;
  io::Resizer resizer_;
  io::Image image_;
  Crop crop_;
  std::vector<CropPlan> plans_;
};

}  // namespace allosaur::data
