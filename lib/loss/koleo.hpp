#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

namespace allosaur::loss {

/// KoLeo regulariser (Sablayrolles et al. 2019; dinov2/loss/koleo_loss.py): mean over rows of -log of the distance to
/// the nearest other row, on L2-normalised features, within groups of `group` consecutive rows, averaged over groups.
/// In float32: in float16 its epsilon of 1e-8 vanishes and two equal rows give infinity. A group of one row is its
/// own neighbour, as published: a constant, without gradients.
///   features [n, D], n a multiple of group.  Returns f32 [], differentiable.
at::Tensor koleo(const at::Tensor& features, std::int64_t group);

}  // namespace allosaur::loss
