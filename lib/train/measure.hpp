#pragma once
#include <ATen/core/Tensor.h>

#include "train/units.hpp"

namespace allosaur::train {

/// Floating-point operations a second of a large product, as the linear layers do it: what utilisation is a share of.
/// Takes a fraction of a second, with smaller products where large ones take long.
double matrix_rate(const UnitsConfig& units, bool fast_products);

/// Bytes that tensors on a device have taken at most; on the CPU, that the process has.
double peak_memory_bytes(const at::Device& device);

}  // namespace allosaur::train
