#pragma once
#include <array>
#include <vector>

#include "io/image.hpp"

namespace allosaur::report {

/// Pairs of pictures (RGB) on white, row by row: the two of a pair touch, pairs stand apart. Each picture is fitted
/// into a square of `tile` pixels. No pairs: a blank picture.
io::Image contact_sheet(const std::vector<std::array<io::Image, 2>>& pairs, int tile = 96, int pairs_a_row = 4);

}  // namespace allosaur::report
