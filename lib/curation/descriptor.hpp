#pragma once
#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::curation {

/// Values of a finished descriptor.
inline constexpr std::int64_t kDescriptorWidth = 48;

/// The training-free copy descriptor: a linear map of a thumbnail view (thumbnail.hpp), scaled to unit length, so that
/// the dot product of two is their similarity. Its similarities mean something only together with the threshold that
/// was calibrated for it; thresholds of learned copy detectors do not carry over.
class CopyDescriptor {
 public:
  CopyDescriptor() = default;
  /// `mean` f64 [kThumbnailWidth], `projection` f64 [kThumbnailWidth, kDescriptorWidth].
  CopyDescriptor(at::Tensor mean, at::Tensor projection);
  /// f32 [..., kThumbnailWidth] -> f32 [..., kDescriptorWidth], unit length.
  at::Tensor operator()(const at::Tensor& views) const;
  const at::Tensor& mean() const noexcept { return mean_; }
  const at::Tensor& projection() const noexcept { return projection_; }

 private:
  at::Tensor mean_, projection_;
};

/// Collective. Fits the map to a sample of the pool: `views` f32 [n, kViews, kThumbnailWidth] of this rank's sample
/// images (n may be 0) and `copies` f32 [n, C, kThumbnailWidth], whole views of synthetic copies of them. Needs one
/// image over all ranks; the same result on all.
///
/// 1. Centre and whiten by the principal components of all views: what all images share stops counting.
/// 2. In the whitened space an original x and its copy y have the correlation rho_i = 1 - E[(x_i - y_i)^2] / 2 along
///    each principal axis of their differences. For Gaussian values, x and y are as likely a copy as
///    sum_i rho_i / (1 - rho_i^2) x_i y_i + (norm terms) says: axes are weighted by its root, and the most faithful are
///    kept.
/// Cost a rank: two all-reduces of a square matrix of the thumbnail's and one of the components' width, in float64.
CopyDescriptor fit_copy_descriptor(comm::Communicator& group, const at::Tensor& views, const at::Tensor& copies);

/// The similarity at which copies and strangers are told apart best: where the share of `copies` below it plus the
/// share of `nearest` at or above it is least; the middle, where an interval is equally good. `copies`: similarities of
/// synthetic copies to their originals; `nearest`: similarity of images to their nearest other image in the pool. Real
/// copies among the latter do not move the result, as long as they are as similar as the synthetic ones: they add to
/// both shares alike. Neither may be empty.
double separating_threshold(std::span<const float> copies, std::span<const float> nearest);

/// How well the descriptor tells copies from strangers in a pool, and where the line is drawn.
struct Calibration {
  double threshold = 0;
  double copies_missed = 0;     ///< share of synthetic copies that are less similar than that
  double strangers_joined = 0;  ///< share of images whose nearest other image is as similar; real copies are among them
};

/// Draws the line at the separating threshold or, where that is lower, so that 5 % of the synthetic copies are missed:
/// a pool holds fewer copies than strangers, so joining strangers costs more than missing the most mangled copies.
/// `copies` may not be empty; `nearest` may (a pool of one image).
Calibration calibrate(std::span<const float> copies, std::span<const float> nearest);

}  // namespace allosaur::curation
