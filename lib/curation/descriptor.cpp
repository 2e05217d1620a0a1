#include "curation/descriptor.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "curation/thumbnail.hpp"

namespace allosaur::curation {
namespace {

constexpr std::int64_t kComponents = 96;
// Components that a small sample does not have are kept from being blown up; those that copies do not keep drop out
// later.
constexpr double kEigenvalueFloor = 1e-6;
constexpr double kHighestCorrelation = 0.99;
constexpr double kMissedCopies = 0.05;

/// Collective. Mean over all rows of all ranks: f64 [width].
at::Tensor mean_over_ranks(comm::Communicator& group, const at::Tensor& rows, std::int64_t total) {
  const at::Tensor sum = rows.sum(0).contiguous();
  group.all_reduce(sum, comm::ReduceOp::sum);
  return sum / static_cast<double>(total);
}

/// Collective. Mean over all rows of all ranks of x x^T: f64 [width, width].
at::Tensor second_moment(comm::Communicator& group, const at::Tensor& rows, std::int64_t total) {
  const at::Tensor sum = at::mm(rows.t(), rows);
  group.all_reduce(sum, comm::ReduceOp::sum);
  return sum / static_cast<double>(total);
}

/// Collective. Eigenvalues, ascending, and eigenvectors (columns) of the same symmetric matrix on all ranks. Rank 0's
/// are taken: another processor might choose other signs.
std::pair<at::Tensor, at::Tensor> eigen(comm::Communicator& group, const at::Tensor& matrix) {
  auto [values, vectors] = comm::coordinate(group, [&] { return at::linalg_eigh(matrix); });
  values = values.contiguous();
  vectors = vectors.contiguous();
  group.broadcast(values, 0);
  group.broadcast(vectors, 0);
  return {values, vectors};
}

}  // namespace

CopyDescriptor::CopyDescriptor(at::Tensor mean, at::Tensor projection)
    : mean_(std::move(mean)), projection_(std::move(projection)) {}

at::Tensor CopyDescriptor::operator()(const at::Tensor& views) const {
  const at::Tensor rows = at::matmul(views - mean_.to(at::kFloat), projection_.to(at::kFloat));
  return rows / rows.norm(2, {-1}, true).clamp_min(std::numeric_limits<float>::min());
}

CopyDescriptor fit_copy_descriptor(comm::Communicator& group, const at::Tensor& views, const at::Tensor& copies) {
  const at::Tensor all_views = views.to(at::kDouble).reshape({-1, kThumbnailWidth});
  const std::int64_t total_views = group.sum(all_views.size(0)),
                     total_copies = group.sum(copies.size(0) * copies.size(1));
  if (total_views == 0 || total_copies == 0) throw std::logic_error("fit_copy_descriptor: the sample is empty");

  const at::Tensor mean = mean_over_ranks(group, all_views, total_views);
  const auto [variances, axes] = eigen(group, second_moment(group, all_views - mean, total_views));
  const at::Tensor largest = variances.narrow(0, kThumbnailWidth - kComponents, kComponents);
  const double floor = std::max(kEigenvalueFloor * variances.max().item<double>(), 1e-12);
  const at::Tensor whitening =
      axes.narrow(1, kThumbnailWidth - kComponents, kComponents) / largest.clamp_min(floor).sqrt();

  const at::Tensor originals = views.narrow(1, 0, 1).to(at::kDouble);
  const at::Tensor differences = at::matmul(copies.to(at::kDouble) - originals, whitening).reshape({-1, kComponents});
  const auto [noise, turns] = eigen(group, second_moment(group, differences, total_copies));
  const at::Tensor correlation = (1 - noise.narrow(0, 0, kDescriptorWidth) / 2).clamp(0, kHighestCorrelation);
  const at::Tensor weights = (correlation / (1 - correlation.square())).sqrt();
  return {mean, at::mm(whitening, turns.narrow(1, 0, kDescriptorWidth) * weights)};
}

double separating_threshold(std::span<const float> copies, std::span<const float> nearest) {
  if (copies.empty() || nearest.empty()) throw std::logic_error("separating_threshold: nothing to tell apart");
  std::vector<float> below(copies.begin(), copies.end()), above(nearest.begin(), nearest.end());
  std::sort(below.begin(), below.end());
  std::sort(above.begin(), above.end());
  std::vector<float> edges{0.0F};
  edges.insert(edges.end(), below.begin(), below.end());
  edges.insert(edges.end(), above.begin(), above.end());
  std::sort(edges.begin(), edges.end());
  // The cost is constant between neighbouring edges, so it is judged once a gap; of separate best intervals the last
  // counts.
  double least = std::numeric_limits<double>::infinity(), from = 0, to = 0;
  bool growing = false;
  for (std::size_t i = 0; i + 1 < edges.size(); ++i) {
    if (edges[i] == edges[i + 1]) continue;
    const auto share_below = [&](const std::vector<float>& values) {
      return static_cast<double>(std::upper_bound(values.begin(), values.end(), edges[i]) - values.begin()) /
             static_cast<double>(values.size());
    };
    const double cost = share_below(below) + 1 - share_below(above);
    if (cost > least) {
      growing = false;
      continue;
    }
    if (cost < least || !growing) from = edges[i];
    least = cost;
    to = edges[i + 1];
    growing = true;
  }
  return (from + to) / 2;
}

Calibration calibrate(std::span<const float> copies, std::span<const float> nearest) {
  std::vector<float> ascending(copies.begin(), copies.end());
  std::sort(ascending.begin(), ascending.end());
  const double few_missed =
      ascending.at(static_cast<std::size_t>(kMissedCopies * static_cast<double>(ascending.size())));
  Calibration result;
  result.threshold = nearest.empty() ? few_missed : std::max(few_missed, separating_threshold(copies, nearest));
  const auto share_below = [&](std::span<const float> values) {
    const auto below = std::ranges::count_if(values, [&](float value) { return value < result.threshold; });
    return static_cast<double>(below) / static_cast<double>(values.size());
  };
  result.copies_missed = share_below(copies);
  result.strangers_joined = nearest.empty() ? 0 : 1 - share_below(nearest);
  return result;
}

}  // namespace allosaur::curation
