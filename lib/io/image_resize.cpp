#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include <fmt/format.h>

#include "io/image_codecs.hpp"
#include "io/image_resize.hpp"

// Both passes are sums of 16 neighbouring bytes at a time: in the vertical pass 16 values of a row; for the horizontal
// pass 16 rows are transposed first. The arithmetic (8-bit values between the passes, weights of 22 fractional bits) is
// Pillow's, so results equal those that published training pipelines see.

// One copy a vector width, chosen when the program starts. ThreadSanitizer cannot run the choice: it comes before its
// set-up.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define ALLOSAUR_VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ALLOSAUR_VECTOR_CLONES
#endif

namespace allosaur::io {
namespace {

constexpr int kWeightBits = 22;
constexpr int kLanes = 16;
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));

constexpr std::int64_t round_up_to_lanes(std::int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

double bicubic(double x) {  // Keys 1981, a = -0.5
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

/// For every output position along one axis: where its source values begin, how many there are, and their weights.
struct Taps {
  std::vector<int> first, count;
  std::vector<std::int32_t> weights;  // `stride` for each output position
  std::vector<double> exact;          // of one output position
  std::size_t stride = 0;
  int begin = 0, end = 0;  // the source positions any output needs

  /// `outputs` positions spread over [start, start + extent) of an axis with `inputs` source positions.
  void set(double start, double extent, int inputs, int outputs) {
    const double scale = extent / outputs;
    const double widening = std::max(scale, 1.0);  // when shrinking, the filter covers as many more source pixels
    const double support = 2.0 * widening, narrowing = 1.0 / widening;
    const auto n = static_cast<std::size_t>(outputs);
    stride = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
    begin = inputs;
    end = 0;
    first.resize(n);
    count.resize(n);
    weights.resize(n * stride);
    exact.resize(stride);
    for (std::size_t i = 0; i < n; ++i) {
      const double centre = start + (static_cast<double>(i) + 0.5) * scale;
      first[i] = std::max(static_cast<int>(centre - support + 0.5), 0);
      count[i] = std::min(static_cast<int>(centre + support + 0.5), inputs) - first[i];
      double total = 0.0;
      for (int k = 0; k < count[i]; ++k) {
        const double weight = bicubic((k + first[i] - centre + 0.5) * narrowing);
        exact[static_cast<std::size_t>(k)] = weight;
        total += weight;
      }
      for (std::size_t k = 0; k < static_cast<std::size_t>(count[i]); ++k) {
        const double scaled = exact[k] / total * (1 << kWeightBits);
        weights[i * stride + k] = static_cast<std::int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
      }
      begin = std::min(begin, first[i]);
      end = std::max(end, first[i] + count[i]);
    }
  }
};

/// out[lane] = sum over k of weights[k] * source[k * stride + lane], rounded and clipped to 8 bits.
[[gnu::always_inline]] inline void weighted_sum(const std::uint8_t* source, std::ptrdiff_t stride,
                                                const std::int32_t* weights, int count, std::uint8_t* out) {
  std::int32_t sums[kLanes];
  for (std::int32_t& sum : sums) sum = 1 << (kWeightBits - 1);
  for (int k = 0; k < count; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += weights[k] * source[k * stride + lane];
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    out[lane] = static_cast<std::uint8_t>(std::clamp(sums[lane] >> kWeightBits, 0, 255));
  }
}

/// Writes 16 rows of 16 bytes transposed: four rounds of interleaving the first half of the rows with the second.
[[gnu::always_inline]] inline void transpose(const std::uint8_t* in, std::ptrdiff_t in_stride, std::uint8_t* out,
                                             std::ptrdiff_t out_stride) {
  constexpr Bytes kLow = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  constexpr Bytes kHigh = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  Bytes rows[kLanes], next[kLanes];
  for (int r = 0; r < kLanes; ++r) std::memcpy(&rows[r], in + r * in_stride, kLanes);
  for (int round = 0; round < 4; ++round) {
    for (int r = 0; r < kLanes / 2; ++r) {
      next[2 * r] = __builtin_shuffle(rows[r], rows[r + kLanes / 2], kLow);
      next[2 * r + 1] = __builtin_shuffle(rows[r], rows[r + kLanes / 2], kHigh);
    }
    std::copy(next, next + kLanes, rows);
  }
  for (int r = 0; r < kLanes; ++r) std::memcpy(out + r * out_stride, &rows[r], kLanes);
}

/// Rows of bytes, padded so that blocks of 16 x 16 can be read and written everywhere.
struct Plane {
  void resize(int rows, std::ptrdiff_t row_bytes) {
    stride = round_up_to_lanes(row_bytes);
    bytes.resize(static_cast<std::size_t>(round_up_to_lanes(rows) * stride));
  }
  std::uint8_t* at(std::ptrdiff_t row, std::ptrdiff_t byte) { return bytes.data() + row * stride + byte; }
  std::ptrdiff_t stride = 0;
  std::vector<std::uint8_t> bytes;
};

/// How the values of an output row are ordered: byte x * step + c * channel_step, or from the right end when mirrored.
struct Order {
  std::ptrdiff_t step, channel_step;
  bool mirror;
};

struct Strips {
  Plane in, block_in, block_out;  // 16 rows, and transposed: 16 bytes, one a row, for each byte of a row
};

/// Resamples `row_count` rows, `pitch` bytes apart; `source` points at the first row's column columns.begin.
ALLOSAUR_VECTOR_CLONES void resample_rows(const std::uint8_t* source, std::ptrdiff_t pitch, int row_count,
                                          const Taps& columns, int channels, const Order& order, Strips& strips,
                                          Plane& out) {
  const int row_bytes = (columns.end - columns.begin) * channels;
  Plane &in = strips.in, &block_in = strips.block_in, &block_out = strips.block_out;
  in.resize(kLanes, row_bytes);
  block_in.resize(static_cast<int>(in.stride), kLanes);
  block_out.resize(static_cast<int>(out.stride), kLanes);
  const std::size_t width = columns.first.size();
  for (int y = 0; y < row_count; y += kLanes) {
    for (int r = 0; r < std::min(kLanes, row_count - y); ++r)
      std::copy_n(source + (y + r) * pitch, row_bytes, in.at(r, 0));
    for (std::ptrdiff_t i = 0; i < in.stride; i += kLanes) transpose(in.at(0, i), in.stride, block_in.at(i, 0), kLanes);
    for (std::size_t x = 0; x < width; ++x) {
      const auto to = static_cast<std::ptrdiff_t>(order.mirror ? width - 1 - x : x) * order.step;
      for (int c = 0; c < channels; ++c) {
        weighted_sum(block_in.at((columns.first[x] - columns.begin) * channels + c, 0), channels * kLanes,
                     &columns.weights[x * columns.stride], columns.count[x],
                     block_out.at(to + c * order.channel_step, 0));
      }
    }
    for (std::ptrdiff_t i = 0; i < out.stride; i += kLanes) {
      transpose(block_out.at(i, 0), kLanes, out.at(y, i), out.stride);
    }
  }
}

/// Resamples the columns of `in` (its first row is rows.begin). Each row of the result is cut into `parts` of
/// `part_bytes` bytes; part p goes to out + p * part_step, the next row follows it.
ALLOSAUR_VECTOR_CLONES void resample_columns(Plane& in, const Taps& rows, int parts, std::ptrdiff_t part_bytes,
                                             std::ptrdiff_t part_step, std::vector<std::uint8_t>& line,
                                             std::uint8_t* out) {
  line.resize(static_cast<std::size_t>(in.stride));
  for (std::size_t y = 0; y < rows.first.size(); ++y, out += part_bytes) {
    const std::ptrdiff_t first = rows.first[y] - rows.begin;
    for (std::ptrdiff_t i = 0; i < in.stride; i += kLanes) {
      weighted_sum(in.at(first, i), in.stride, &rows.weights[y * rows.stride], rows.count[y], line.data() + i);
    }
    for (int p = 0; p < parts; ++p) std::copy_n(line.data() + p * part_bytes, part_bytes, out + p * part_step);
  }
}

}  // namespace

struct Resizer::Impl {
  /// Sets the taps and fills `narrowed` with what columns are resampled from.
  void narrow(const Image& image, const Box& box, int width, int height, const Order& order) {
    const double right = std::min(std::ceil(box.left + box.width), double(image.width));
    const double bottom = std::min(std::ceil(box.top + box.height), double(image.height));
    const double left = std::floor(box.left), top = std::floor(box.top);
    if (!(left >= 0.0 && top >= 0.0 && box.width > 0.0 && box.height > 0.0 && box.left + box.width <= right &&
          box.top + box.height <= bottom)) {
      throw std::logic_error(fmt::format("Resizer: the box ({}, {}, {}, {}) is not inside an image of {} x {}",
                                         box.left, box.top, box.width, box.height, image.width, image.height));
    }
    const int channels = image.channels;
    columns.set(box.left - left, box.width, static_cast<int>(right - left), width);
    rows.set(box.top - top, box.height, static_cast<int>(bottom - top), height);
    const std::ptrdiff_t pitch = std::ptrdiff_t{image.width} * channels;
    const std::uint8_t* source = image.pixels.data() + (static_cast<int>(top) + rows.begin) * pitch +
                                 (static_cast<int>(left) + columns.begin) * channels;
    const int row_count = rows.end - rows.begin;
    narrowed.resize(row_count, std::ptrdiff_t{width} * channels);
    resample_rows(source, pitch, row_count, columns, channels, order, strips, narrowed);
  }

  Taps columns, rows;
  Strips strips;
  Plane narrowed;
  std::vector<std::uint8_t> line;
};

Resizer::Resizer() : impl_(std::make_unique<Impl>()) {}
Resizer::~Resizer() = default;
Resizer::Resizer(Resizer&&) noexcept = default;
Resizer& Resizer::operator=(Resizer&&) noexcept = default;

void Resizer::interleaved(const Image& image, const Box& box, int width, int height, std::uint8_t* out) {
  const std::ptrdiff_t row_bytes = std::ptrdiff_t{width} * image.channels;
  impl_->narrow(image, box, width, height, {image.channels, 1, false});
  resample_columns(impl_->narrowed, impl_->rows, 1, row_bytes, 0, impl_->line, out);
}

void Resizer::planar(const Image& image, const Box& box, int width, int height, bool mirror, std::uint8_t* out) {
  impl_->narrow(image, box, width, height, {1, width, mirror});
  resample_columns(impl_->narrowed, impl_->rows, image.channels, width, std::ptrdiff_t{width} * height, impl_->line,
                   out);
}

Image resize_bicubic(const Image& image, const Box& box, int width, int height) {
  Image result = codec::allocate(width, height, image.channels);
  Resizer().interleaved(image, box, width, height, result.pixels.data());
  return result;
}

Image resize_bicubic(const Image& image, int width, int height) {
  return resize_bicubic(image, {0.0, 0.0, double(image.width), double(image.height)}, width, height);
}

}  // namespace allosaur::io
