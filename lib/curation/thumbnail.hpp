#pragma once
#include <cstdint>
#include <span>

#include "core/random.hpp"
#include "io/image.hpp"

/// What the training-free copy descriptor sees of an image.
namespace allosaur::curation {

/// View 0 is the whole image; views 1 to 9 are windows of 85 % of its sides, at the corners, edges and the middle. A
/// cropped copy looks like one of its original's windows.
inline constexpr std::int64_t kViews = 10;
/// Values a view: 8x8 luma, 4x4 of each chroma, and 4x4 cells of 8 directed gradients.
inline constexpr std::int64_t kThumbnailWidth = 64 + 2 * 16 + 128;

/// The first `out.size() / kThumbnailWidth` views of an RGB image of any size, one after the other. The image is
/// squashed to a small square first, so shape and resolution do not matter.
void describe_views(const io::Image& image, std::span<float> out);

/// Copies of an image such as the web is full of, after re-encoding as JPEG: even `kind` cropped to 75-95 % of each
/// side, 1, 5, ... blurred by shrinking, 3, 7, ... only coded coarsely. Kinds 0 to kSyntheticKinds - 1 are one of each,
/// crops twice.
inline constexpr int kSyntheticKinds = 4;
io::Image synthetic_copy(const io::Image& image, int kind, core::Random& random);

}  // namespace allosaur::curation
