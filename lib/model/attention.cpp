#include "model/attention.hpp"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace allosaur::model {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The rows of one resolution, [B, N, ...] as its heads: `packed` [B * N, parts * D] -> parts x [B, H, N, D / H],
/// views.
variable_list heads_of(const at::Tensor& packed, const Extent& e, std::int64_t parts, std::int64_t heads) {
  const std::int64_t dim = packed.size(1) / parts / heads;
  return packed.view({e.batch, e.tokens, parts, heads, dim}).permute({2, 0, 3, 1, 4}).unbind();
}

/// Calls body(rows, extent) with the rows of each resolution.
template <class Body>
void for_extents(const std::vector<Extent>& extents, const Body& body) {
  std::int64_t begin = 0;
  for (const Extent& e : extents) {
    body([first = begin, count = e.rows()](const at::Tensor& packed) { return packed.narrow(0, first, count); }, e);
    begin += e.rows();
  }
}

/// LibTorch's fused kernels for the host, around which all resolutions share one buffer for what is kept and one for
/// the gradients. Its own derivative would keep outputs twice and gather gradients twice.
struct HostAttention : torch::autograd::Function<HostAttention> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& qkv, const std::vector<Extent>& extents,
                            std::int64_t heads) {
    at::Tensor output = at::empty({qkv.size(0), qkv.size(1) / 3}, qkv.options());
    variable_list saved{qkv, output};
    for_extents(extents, [&](const auto& rows, const Extent& e) {
      const variable_list in = heads_of(rows(qkv), e, 3, heads);
      const auto [result, log_sum_exp] = at::_scaled_dot_product_flash_attention_for_cpu(in[0], in[1], in[2]);
      heads_of(rows(output), e, 1, heads)[0].copy_(result);
      saved.push_back(log_sum_exp);
    });
    context->save_for_backward(saved);
    context->saved_data["heads"] = heads;
    std::vector<std::int64_t> shapes;
    for (const Extent& e : extents) shapes.insert(shapes.end(), {e.batch, e.tokens});
    context->saved_data["shapes"] = shapes;
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grad_output) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &qkv = saved[0], &output = saved[1], grad = grad_output[0].contiguous();
    const std::int64_t heads = context->saved_data["heads"].toInt();
    const std::vector<std::int64_t> shapes = context->saved_data["shapes"].toIntVector();
    std::vector<Extent> extents;
    for (std::size_t i = 0; i < shapes.size(); i += 2) extents.push_back({shapes[i], shapes[i + 1], 0});
    at::Tensor grad_qkv = at::empty_like(qkv);
    std::size_t next = 2;
    for_extents(extents, [&](const auto& rows, const Extent& e) {
      const variable_list in = heads_of(rows(qkv), e, 3, heads), to = heads_of(rows(grad_qkv), e, 3, heads);
      const auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          heads_of(rows(grad), e, 1, heads)[0], in[0], in[1], in[2], heads_of(rows(output), e, 1, heads)[0],
          saved[next++], /*dropout_p=*/0, /*is_causal=*/false);
      to[0].copy_(q);
      to[1].copy_(k);
      to[2].copy_(v);
    });
    return {grad_qkv, {}, {}};
  }
};

}  // namespace

at::Tensor attention(const at::Tensor& qkv, const std::vector<Extent>& extents, int heads) {
  if (qkv.is_cpu() && qkv.requires_grad() && at::GradMode::is_enabled())
    return HostAttention::apply(qkv, extents, static_cast<std::int64_t>(heads));
  variable_list parts;
  for_extents(extents, [&](const auto& rows, const Extent& e) {
    const variable_list in = heads_of(rows(qkv), e, 3, heads);
    parts.push_back(at::scaled_dot_product_attention(in[0], in[1], in[2]).transpose(1, 2).reshape({e.rows(), -1}));
  });
  return parts.size() == 1 ? parts.front() : at::cat(parts);
}

}  // namespace allosaur::model
