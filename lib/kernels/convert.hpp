#pragma once
#include <cstdint>

#include "kernels/kernels.hpp"

namespace allosaur::kernels::cpu {

/// Elements [begin, begin + n) of an array as float32: where they are, or converted into `scratch`.
const float* load(std::int64_t begin, std::int64_t n, const void* from, Type type, float* scratch);
/// Writes n float32 to elements [begin, begin + n) of an array, rounded to nearest, ties to even.
void store(std::int64_t begin, std::int64_t n, const float* from, Type type, void* to);

}  // namespace allosaur::kernels::cpu
