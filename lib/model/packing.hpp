#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "model/fused.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::model {

/// Where the tokens of one crop resolution lie in a packed sequence [T, D].
struct Extent {
  std::int64_t batch, tokens, begin;
  std::int64_t rows() const { return batch * tokens; }
};

/// The rows of an attention branch.
struct AttentionRows {
  std::vector<Extent> extents;  // of the rows that are read, packed
  Rows read;                    // what attends and is attended to
  at::Tensor attended;          // i64 [n] into `read`: where the result is wanted; undefined: everywhere
  Rows written;                 // the rows of `attended`
};

/// Which rows of the packed sequence each branch works on: a branch leaves out the images that stochastic depth drops,
/// and the last block what nobody reads (VitInput::patches): there only keys and values need every token. Worked out in
/// host memory, so that no device is waited for.
class Packing {
 public:
  /// Of `inputs`, whose images have `tokens[i]` tokens each, `prefix` of them before the patches. Throws
  /// core::UsageError where some inputs choose patches and others do not.
  Packing(const std::vector<VitInput>& inputs, const std::vector<std::int64_t>& tokens, std::int64_t prefix,
          at::Device device);

  const std::vector<Extent>& extents() const noexcept { return extents_; }
  /// i64: for each input the rows of its class tokens, then those of its chosen patches. Undefined: all are read.
  const at::Tensor& outputs() const noexcept { return outputs_; }

  /// Of a block's branches; `last`: nothing but the outputs is read behind them.
  AttentionRows attention(std::size_t block, bool last) const;
  Rows feed_forward(std::size_t block, bool last) const;

 private:
  struct HostRows;
  HostRows kept(std::size_t branch, std::vector<Extent>& extents) const;
  std::vector<std::int64_t> keep_outputs(HostRows& rows) const;
  Rows on_device(const HostRows& rows) const;

  const std::vector<VitInput>& inputs_;
  at::Device device_;
  std::vector<Extent> extents_;
  at::Tensor outputs_;
  std::vector<std::int64_t> output_rows_;
  std::vector<bool> is_output_;  // of each row
};

}  // namespace allosaur::model
