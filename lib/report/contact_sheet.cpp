#include "report/contact_sheet.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace allosaur::report {
namespace {

constexpr int kGap = 12;

/// Draws `picture`, fitted into the tile whose corner is (left, top), in its middle.
void draw(const io::Image& picture, int left, int top, int tile, io::Image& sheet) {
  const double scale = static_cast<double>(tile) / std::max(picture.width, picture.height);
  const auto fitted = [&](int side) { return std::max(1, static_cast<int>(std::lround(side * scale))); };
  const io::Image small = io::resize_bicubic(picture, fitted(picture.width), fitted(picture.height));
  left += (tile - small.width) / 2;
  top += (tile - small.height) / 2;
  const std::ptrdiff_t row_bytes = std::ptrdiff_t{3} * small.width;
  for (std::ptrdiff_t y = 0; y < small.height; ++y) {
    std::copy_n(small.pixels.begin() + y * row_bytes, row_bytes,
                sheet.pixels.begin() + 3 * ((top + y) * sheet.width + left));
  }
}

}  // namespace

io::Image contact_sheet(const std::vector<std::array<io::Image, 2>>& pairs, int tile, int pairs_a_row) {
  const int count = static_cast<int>(pairs.size()), rows = std::max(1, (count + pairs_a_row - 1) / pairs_a_row);
  io::Image sheet{.width = pairs_a_row * (2 * tile + kGap) + kGap, .height = rows * (tile + kGap) + kGap, .pixels = {}};
  sheet.pixels.assign(static_cast<std::size_t>(sheet.width) * static_cast<std::size_t>(sheet.height) * 3, 255);
  for (int i = 0; i < count; ++i) {
    const int left = kGap + i % pairs_a_row * (2 * tile + kGap), top = kGap + i / pairs_a_row * (tile + kGap);
    const auto& pair = pairs[static_cast<std::size_t>(i)];
    draw(pair[0], left, top, tile, sheet);
    draw(pair[1], left + tile, top, tile, sheet);
  }
  return sheet;
}

}  // namespace allosaur::report
