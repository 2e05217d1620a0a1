#include "curation/thumbnail.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <vector>

namespace allosaur::curation {
namespace {

constexpr int kSide = 32;  // of the square that views are cut from
constexpr int kLuma = 16, kChroma = 4, kCells = 4, kDirections = 8;
constexpr double kWindow = 0.85 * kSide;
constexpr int kSyntheticSide = 128;  // a larger image is reduced first: thumbnails cannot tell, and it is fast

using Plane = std::array<float, kSide * kSide>;

/// Weights that bring kSide values to `Size` values by averaging the pixels of [begin, begin + extent).
template <int Size>
struct AreaWeights {
  std::array<std::array<float, kSide>, Size> rows{};

  AreaWeights(double begin, double extent) {
    const double cell = extent / Size;
    for (int i = 0; i < Size; ++i) {
      const double low = begin + cell * i, high = low + cell;
      for (int j = 0; j < kSide; ++j) {
        const double overlap = std::min(high, j + 1.0) - std::max(low, static_cast<double>(j));
        rows[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] =
            static_cast<float>(std::max(0.0, overlap) / cell);
      }
    }
  }
};

/// The part of the square between `begin` and `begin + extent` along one axis, at luma and chroma resolution.
struct Axis {
  AreaWeights<kLuma> luma;
  AreaWeights<kChroma> chroma;
  Axis(double begin, double extent) : luma(begin, extent), chroma(begin, extent) {}
};

const Axis& axis(int place) {  // 0: everything; 1, 2, 3: window at the start, middle, end
  static const std::array<Axis, 4> axes{Axis{0, kSide}, Axis{0, kWindow}, Axis{(kSide - kWindow) / 2, kWindow},
                                        Axis{kSide - kWindow, kWindow}};
  return axes[static_cast<std::size_t>(place)];
}

template <int Size>
void resample(const Plane& plane, const AreaWeights<Size>& rows, const AreaWeights<Size>& columns, float* out) {
  for (std::size_t i = 0; i < Size; ++i) {
    std::array<float, kSide> line{};
    for (std::size_t y = 0; y < kSide; ++y) {
      const float weight = rows.rows[i][y];
      if (weight == 0) continue;
      for (std::size_t x = 0; x < kSide; ++x) line[x] += weight * plane[y * kSide + x];
    }
    for (std::size_t j = 0; j < Size; ++j) {
      float sum = 0;
      for (std::size_t x = 0; x < kSide; ++x) sum += columns.rows[j][x] * line[x];
      out[i * Size + j] = sum;
    }
  }
}

/// Bilinear weights of 16 positions for 4 cells.
using CellWeights = std::array<std::array<float, kLuma>, kCells>;
CellWeights make_cell_weights() {
  CellWeights weights{};
  for (std::size_t cell = 0; cell < kCells; ++cell) {
    for (std::size_t i = 0; i < kLuma; ++i) {
      const double place = (static_cast<double>(i) + 0.5) * kCells / kLuma - 0.5;
      weights[cell][i] = static_cast<float>(std::max(0.0, 1.0 - std::abs(place - static_cast<double>(cell))));
    }
  }
  return weights;
}

/// For each direction the part of the luma's gradient that points there, summed over soft cells; its root, so that a
/// few strong edges do not outweigh everything.
void directed_gradients(const float* luma, float* out) {
  static const CellWeights cells = make_cell_weights();
  std::array<float, kLuma * kLuma> dx, dy;
  for (int y = 0; y < kLuma; ++y) {
    const float *row = luma + y * kLuma, *above = luma + std::max(y - 1, 0) * kLuma,
                *below = luma + std::min(y + 1, kLuma - 1) * kLuma;
    for (int x = 0; x < kLuma; ++x) {
      const auto place = static_cast<std::size_t>(y * kLuma + x);
      dx[place] = (row[std::min(x + 1, kLuma - 1)] - row[std::max(x - 1, 0)]) / 2;
      dy[place] = (below[x] - above[x]) / 2;
    }
  }
  for (int direction = 0; direction < kDirections; ++direction) {
    const double angle = 2 * std::numbers::pi * direction / kDirections;
    const auto cosine = static_cast<float>(std::cos(angle)), sine = static_cast<float>(std::sin(angle));
    std::array<std::array<float, kLuma>, kCells> bands{};  // summed over y
    for (std::size_t y = 0; y < kLuma; ++y) {
      std::array<float, kLuma> part;
      for (std::size_t x = 0; x < kLuma; ++x) {
        part[x] = std::max(0.0F, cosine * dx[y * kLuma + x] + sine * dy[y * kLuma + x]);
      }
      for (std::size_t cell = 0; cell < kCells; ++cell) {
        for (std::size_t x = 0; x < kLuma; ++x) bands[cell][x] += cells[cell][y] * part[x];
      }
    }
    for (const auto& band : bands) {
      for (const auto& cell : cells) {
        float sum = 1e-4F;
        for (std::size_t x = 0; x < kLuma; ++x) sum += cell[x] * band[x];
        *out++ = 0.5F * std::sqrt(sum);
      }
    }
  }
}

float* describe_view(const Plane& luma, const Plane& blue, const Plane& red, const Axis& vertical,
                     const Axis& horizontal, float* out) {
  std::array<float, kLuma * kLuma> fine;
  resample(luma, vertical.luma, horizontal.luma, fine.data());
  for (std::size_t y = 0; y < kLuma; y += 2) {
    for (std::size_t x = 0; x < kLuma; x += 2) {
      const float* corner = fine.data() + y * kLuma + x;
      *out++ = (corner[0] + corner[1] + corner[kLuma] + corner[kLuma + 1]) / 4;
    }
  }
  for (const Plane* chroma : {&blue, &red}) {
    resample(*chroma, vertical.chroma, horizontal.chroma, out);
    out += kChroma * kChroma;
  }
  directed_gradients(fine.data(), out);
  return out + kCells * kCells * kDirections;
}

}  // namespace

void describe_views(const io::Image& image, std::span<float> out) {
  const io::Image square = io::resize_bicubic(image, kSide, kSide);
  Plane luma, blue, red;
  for (std::size_t i = 0; i < luma.size(); ++i) {
    const std::uint8_t* pixel = square.pixels.data() + 3 * i;
    const float r = static_cast<float>(pixel[0]) / 255, g = static_cast<float>(pixel[1]) / 255,
                b = static_cast<float>(pixel[2]) / 255;
    luma[i] = 0.299F * r + 0.587F * g + 0.114F * b;
    blue[i] = 0.564F * (b - luma[i]);
    red[i] = 0.713F * (r - luma[i]);
  }
  const auto views = static_cast<int>(out.size()) / static_cast<int>(kThumbnailWidth);
  if (views > kViews) throw std::logic_error("describe_views: an image has only kViews views");
  float* next = out.data();
  for (int view = 0; view < views; ++view) {
    const int vertical = view == 0 ? 0 : 1 + (view - 1) / 3, horizontal = view == 0 ? 0 : 1 + (view - 1) % 3;
    next = describe_view(luma, blue, red, axis(vertical), axis(horizontal), next);
  }
}

io::Image synthetic_copy(const io::Image& image, int kind, core::Random& random) {
  io::Box box{0, 0, static_cast<double>(image.width), static_cast<double>(image.height)};
  if (kind % 2 == 0) {
    box.width *= random.uniform(0.75, 0.95);
    box.height *= random.uniform(0.75, 0.95);
    box.left = random.uniform(0, image.width - box.width);
    box.top = random.uniform(0, image.height - box.height);
  }
  const double reduction = std::min(1.0, kSyntheticSide / std::max(box.width, box.height));
  const double shrink = kind % 4 == 1 ? random.uniform(0.3, 0.7) : 1.0;
  const auto side = [&](double length) {
    return std::max(1, static_cast<int>(std::lround(length * reduction * shrink)));
  };
  const io::Image copy = io::resize_bicubic(image, box, side(box.width), side(box.height));
  const double quality = kind % 4 == 3 ? random.uniform(20, 60) : random.uniform(60, 95);
  return io::decode_image(io::encode_jpeg(copy, static_cast<int>(quality)));
}

}  // namespace allosaur::curation
