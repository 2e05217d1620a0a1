#pragma once
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/packing.hpp"

namespace allosaur::model {

/// Self-attention of `heads` heads within each image (softmax of q k^T / sqrt(head dim), times v), differentiable.
/// qkv [n, 3 D]: the rows of the resolutions of `extents`, one after the other, each as q, k and v of all heads;
/// returns [n, D]. Keeps both.
at::Tensor attention(const at::Tensor& qkv, const std::vector<Extent>& extents, int heads);

}  // namespace allosaur::model
