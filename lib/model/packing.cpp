#include "model/packing.hpp"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/error.hpp"

namespace allosaur::model {

/// Rows in host memory; without any, all rows of the sequence.
struct Packing::HostRows {
  std::vector<std::int64_t> index;
  std::vector<float> scale;  // empty: 1
};

Packing::Packing(const std::vector<VitInput>& inputs, const std::vector<std::int64_t>& tokens, std::int64_t prefix,
                 at::Device device)
    : inputs_(inputs), device_(device) {
  std::int64_t total = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    extents_.push_back({inputs[i].images.size(0), tokens[i], total});
    total += extents_.back().rows();
  }
  const auto chosen = std::ranges::count_if(inputs, [](const VitInput& input) { return input.patches.defined(); });
  if (chosen == 0) return;
  if (chosen != std::ssize(inputs))
    throw core::UsageError("Patches are chosen of some resolutions and not of others: choose of all, or of none.");
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Extent& e = extents_[i];
    const std::int64_t patches = e.tokens - prefix;
    for (std::int64_t b = 0; b < e.batch; ++b) output_rows_.push_back(e.begin + b * e.tokens);
    const at::Tensor list = inputs[i].patches.contiguous();
    for (std::int64_t j = 0; j < list.size(0); ++j) {
      const std::int64_t patch = list.const_data_ptr<std::int64_t>()[j];
      output_rows_.push_back(e.begin + patch / patches * e.tokens + prefix + patch % patches);
    }
  }
  outputs_ = to_device(at::tensor(output_rows_, at::kLong), device);
  is_output_.resize(static_cast<std::size_t>(total));
  for (const std::int64_t row : output_rows_) is_output_[static_cast<std::size_t>(row)] = true;
}

Packing::HostRows Packing::kept(std::size_t branch, std::vector<Extent>& extents) const {
  extents = extents_;
  HostRows rows;
  const auto keeps_all = [&](const VitInput& input) { return input.kept.empty() || !input.kept.at(branch).defined(); };
  if (std::ranges::all_of(inputs_, keeps_all)) return rows;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    const Extent& e = extents_[i];
    const at::Tensor images = keeps_all(inputs_[i]) ? at::arange(e.batch) : inputs_[i].kept[branch].contiguous();
    extents[i] = {images.size(0), e.tokens, begin};
    begin += extents[i].rows();
    for (std::int64_t j = 0; j < images.size(0); ++j) {
      const std::int64_t first = e.begin + images.const_data_ptr<std::int64_t>()[j] * e.tokens;
      for (std::int64_t token = 0; token < e.tokens; ++token) rows.index.push_back(first + token);
    }
    rows.scale.resize(static_cast<std::size_t>(begin),
                      static_cast<float>(static_cast<double>(e.batch) / static_cast<double>(images.size(0))));
  }
  return rows;
}

/// The positions of the rows that are outputs; all others are taken out.
std::vector<std::int64_t> Packing::keep_outputs(HostRows& rows) const {
  if (rows.index.empty()) {
    rows.index = output_rows_;
    return output_rows_;
  }
  std::vector<std::int64_t> positions;
  HostRows outputs;
  for (std::size_t i = 0; i < rows.index.size(); ++i)
    if (is_output_[static_cast<std::size_t>(rows.index[i])]) {
      positions.push_back(static_cast<std::int64_t>(i));
      outputs.index.push_back(rows.index[i]);
      outputs.scale.push_back(rows.scale[i]);
    }
  rows = std::move(outputs);
  return positions;
}

Rows Packing::on_device(const HostRows& rows) const {
  if (rows.index.empty()) return {};
  Rows copy{to_device(at::tensor(rows.index, at::kLong), device_), {}};
  if (!rows.scale.empty()) copy.scale = to_device(at::tensor(rows.scale, at::kFloat), device_);
  return copy;
}

AttentionRows Packing::attention(std::size_t block, bool last) const {
  AttentionRows attention;
  HostRows rows = kept(2 * block, attention.extents);
  attention.read = attention.written = on_device(rows);
  if (last && outputs_.defined()) {
    attention.attended = to_device(at::tensor(keep_outputs(rows), at::kLong), device_);
    attention.written = on_device(rows);
    attention.written.vary = true;
  }
  return attention;
}

Rows Packing::feed_forward(std::size_t block, bool last) const {
  std::vector<Extent> extents;
  HostRows rows = kept(2 * block + 1, extents);
  const bool chosen = last && outputs_.defined();
  if (chosen) keep_outputs(rows);
  Rows on = on_device(rows);
  on.vary = chosen;
  return on;
}

}  // namespace allosaur::model
