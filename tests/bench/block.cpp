// Blocks of a ViT-S with stochastic depth, forward and backward on packed crops: fused branches, against LibTorch's
// operators; linear layers and attention are the same in both.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "bench/bench.hpp"
#include "model/fused.hpp"

namespace {

using namespace allosaur;

struct Ffn {
  at::Tensor norm_weight = at::ones({384}), norm_bias = at::zeros({384}), in = at::randn({1536, 384}) * 0.02,
             in_bias = at::zeros({1536}), out = at::randn({384, 1536}) * 0.02, out_bias = at::zeros({384}),
             gamma = at::full({384}, 1e-5);
};

}  // namespace

int main() {
  constexpr std::int64_t kTokens = 4 * (2 * 197 + 8 * 37);
  const at::Tensor images = at::randn({kTokens, 384}), grad = at::randn({kTokens, 384});
  std::vector<Ffn> layers(6);
  for (Ffn& ffn : layers)
    for (at::Tensor* parameter :
         {&ffn.norm_weight, &ffn.norm_bias, &ffn.in, &ffn.in_bias, &ffn.out, &ffn.out_bias, &ffn.gamma})
      parameter->requires_grad_(true);
  const model::Rows rows{at::randperm(kTokens).narrow(0, 0, kTokens * 7 / 10).contiguous(),
                         at::full({kTokens * 7 / 10}, 1.4)};

  const auto ours = [&] {
    at::Tensor x = images.clone();
    for (const Ffn& f : layers) {
      const at::Tensor hidden = model::norm_linear(x, rows, f.norm_weight, f.norm_bias, f.in, {}, false);
      x = model::add_linear(x, rows, model::Activation::gelu, hidden, f.in_bias, f.out, f.out_bias, f.gamma, false);
    }
    x.backward(grad);
  };
  const auto theirs = [&] {
    at::Tensor x = images.clone();
    for (const Ffn& f : layers) {
      const at::Tensor y = at::layer_norm(x.index_select(0, rows.index), {384}, f.norm_weight, f.norm_bias, 1e-6);
      const at::Tensor branch = at::linear(at::gelu(at::linear(y, f.in, f.in_bias)), f.out, f.out_bias) * f.gamma;
      x = x.index_add(0, rows.index, branch * rows.scale.unsqueeze(1));
    }
    x.backward(grad);
  };
  ours();  // makes the parameters' gradients
  const double our_peak = bench::peak_mib(ours), their_peak = bench::peak_mib(theirs);
  const bench::Comparison time = bench::compare(7, ours, theirs);
  fmt::print(
      "{} feed-forward branches, {} of {} tokens, {} threads: fused {:.0f} ms, LibTorch {:.0f} ms, ratio {:.2f}; "
      "peak {:.0f} and {:.0f} MiB\n",
      layers.size(), rows.index.size(0), kTokens, at::get_num_threads(), time.ours * 1e3, time.theirs * 1e3, time.ratio,
      our_peak, their_peak);
}
