#pragma once
#include <string>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "features/extract.hpp"

namespace allosaur::evaluation {

/// This rank's frozen features of the labelled images of a data set (any number of rows, also none).
struct Frozen {
  at::Tensor cls;         // f32 [rows, n, D], the class tokens of the last n blocks, shallow to deep
  at::Tensor patch_mean;  // f32 [rows, D], or undefined
  at::Tensor labels;      // i64 [rows]
};

/// Collective. The rows that were decoded and have a label; without a copy where all have. Throws core::InputError
/// naming `what` ("test set") when no rank has any, and core::NumericalError when a feature is not finite.
Frozen labelled_rows(comm::Communicator& group, const features::Features& features, const std::string& what);

/// Collective. Replaces the features of both sets, moved and scaled by statistics of `train` over all ranks, in
/// float64: each dimension to mean 0, and each part (the tokens of one block; the patch means) as a whole to mean
/// square 1. The class token of a fresh network differs between images by parts in 1e5 and less: without this, cosines
/// in float32 are rounding noise and a probe has nothing to learn from.
void centre(comm::Communicator& group, Frozen& train, Frozen& test);

}  // namespace allosaur::evaluation
