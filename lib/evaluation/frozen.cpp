#include "evaluation/frozen.hpp"

#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"

namespace allosaur::evaluation {
namespace {

constexpr std::int64_t kChunk = 4096;  // rows in float64 at a time, to bound memory

/// Calls body(x) with float64 copies of `rows` f32 [rows, ...].
void for_each_chunk(const at::Tensor& rows, const std::function<void(const at::Tensor&)>& body) {
  for (const at::Tensor& chunk : rows.split(kChunk)) body(chunk.to(at::kDouble));
}

/// As centre(), for f32 [rows, parts, D].
void centre_parts(comm::Communicator& group, at::Tensor& train, at::Tensor& test) {
  const double total = static_cast<double>(group.sum(train.size(0)));
  const at::Tensor mean = at::zeros({train.size(1), train.size(2)}, at::kDouble);
  for_each_chunk(train, [&](const at::Tensor& x) { mean.add_(x.sum(0)); });
  group.all_reduce(mean, comm::ReduceOp::sum);
  mean.div_(total);

  const at::Tensor scale = at::zeros({train.size(1), 1}, at::kDouble);
  for_each_chunk(train, [&](const at::Tensor& x) { scale.add_((x - mean).square_().sum(0).sum(1, /*keepdim=*/true)); });
  group.all_reduce(scale, comm::ReduceOp::sum);
  scale.div_(total * static_cast<double>(train.size(2))).sqrt_();
  scale.masked_fill_(scale.eq(0), 1.0);  // constant features stay zero

  for (at::Tensor* rows : {&train, &test}) {
    std::vector<at::Tensor> centred;
    for_each_chunk(*rows, [&](const at::Tensor& x) { centred.push_back((x - mean).div_(scale).to(at::kFloat)); });
    *rows = at::cat(centred);
  }
}

}  // namespace

Frozen labelled_rows(comm::Communicator& group, const features::Features& features, const std::string& what) {
  std::vector<std::int64_t> kept, labels;
  for (std::size_t row = 0; row < features.labels.size(); ++row) {
    if (features.area[row] == 0 || features.labels[row] < 0) continue;
    kept.push_back(static_cast<std::int64_t>(row));
    labels.push_back(features.labels[row]);
  }
  Frozen frozen{.cls = features.cls, .patch_mean = features.patch_mean, .labels = at::tensor(labels, at::kLong)};
  if (kept.size() < features.labels.size()) {
    const at::Tensor rows = at::tensor(kept, at::kLong);
    frozen.cls = frozen.cls.index_select(0, rows);
    if (frozen.patch_mean.defined()) frozen.patch_mean = frozen.patch_mean.index_select(0, rows);
  }

  const std::int64_t total = group.sum(frozen.labels.numel());
  comm::coordinate(group, [&] {
    if (total == 0) {
      throw core::InputError(
          fmt::format("The {} has no image that can be decoded and has a label. Give a folder with one "
                      "folder of images for each class, or a set packed with labels.",
                      what));
    }
    const bool finite = frozen.cls.isfinite().all().item<bool>() &&
                        (!frozen.patch_mean.defined() || frozen.patch_mean.isfinite().all().item<bool>());
    if (!finite) {
      throw core::NumericalError(
          fmt::format("The features of the {} are not finite on rank {}: the weights are damaged, "
                      "or their training has diverged.",
                      what, group.rank()));
    }
  });
  return frozen;
}

void centre(comm::Communicator& group, Frozen& train, Frozen& test) {
  centre_parts(group, train.cls, test.cls);
  if (!train.patch_mean.defined()) return;
  at::Tensor train_mean = train.patch_mean.unsqueeze(1), test_mean = test.patch_mean.unsqueeze(1);
  centre_parts(group, train_mean, test_mean);
  train.patch_mean = train_mean.squeeze(1);
  test.patch_mean = test_mean.squeeze(1);
}

}  // namespace allosaur::evaluation
