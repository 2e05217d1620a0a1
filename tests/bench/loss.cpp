// The cross-entropy of student and teacher with its gradients: chunks with fused kernels, against log_softmax on
// materialised scores. Usage: bench_loss [PROTOTYPES CROPS IMAGES]; without, four published sizes.
#include <array>
#include <cstdlib>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "bench/bench.hpp"
#include "loss/cross_entropy.hpp"

namespace {

using namespace allosaur;

void run(std::int64_t prototypes, std::int64_t crops, std::int64_t images) {
  constexpr std::int64_t kWidth = 256;
  const std::int64_t teacher_crops = crops == 1 ? 1 : 2;
  const auto unit = [](at::Tensor x) { return x / x.norm(2, -1, true); };
  at::Tensor student = unit(at::randn({crops, images, kWidth})), weights = at::randn({prototypes, kWidth}),
             gain = at::ones({prototypes, 1});
  student.requires_grad_(true);
  weights.requires_grad_(true);
  gain.requires_grad_(true);
  const loss::Targets targets =
      loss::centre(at::rand({teacher_crops * images, prototypes}), at::zeros({prototypes}), 0.07);
  const at::Tensor pairs = at::ones({crops, teacher_crops}),
                   row_weight = at::full({images}, 1.0 / static_cast<double>(images));

  const auto clear = [&] {
    student.mutable_grad().reset();
    weights.mutable_grad().reset();
    gain.mutable_grad().reset();
  };
  const auto ours = [&] {
    clear();
    loss::prototype_cross_entropy(student.flatten(0, 1), {gain, weights}, {{targets, pairs, row_weight}})
        .total.backward();
  };
  const auto theirs = [&] {
    clear();
    const auto t = at::softmax(targets.logits / targets.temperature + targets.shift, 1).chunk(teacher_crops);
    at::Tensor total = at::zeros({});
    const at::Tensor effective = weights * (gain / weights.norm(2, 1, true));
    for (const at::Tensor& scores : at::matmul(student, effective.t()).unbind(0)) {
      const at::Tensor log_p = at::log_softmax(scores / 0.1, 1);
      for (const at::Tensor& target : t) total = total - ((target * log_p).sum(1) * row_weight).sum();
    }
    total.backward();
  };
  const auto peak = [&](const auto& body) {
    clear();
    return bench::peak_mib(body);
  };
  const double our_peak = peak(ours), their_peak = peak(theirs);
  const bench::Comparison time = bench::compare(crops * images * prototypes > 200'000'000 ? 3 : 5, ours, theirs);
  fmt::print("K {:6}, {:4} rows: ours {:.0f} ms, log_softmax {:.0f} ms, ratio {:.2f}; peak {:.0f} and {:.0f} MiB\n",
             prototypes, crops * images, time.ours * 1e3, time.theirs * 1e3, time.ratio, our_peak, their_peak);
}

}  // namespace

int main(int argc, char** argv) {
  fmt::print("{} threads; peak beyond inputs and teacher logits, with the gradients\n", at::get_num_threads());
  if (argc == 4) {
    run(std::atol(argv[1]), std::atol(argv[2]), std::atol(argv[3]));
    return 0;
  }
  for (const std::int64_t prototypes : {65'536, 131'072})
    for (const auto& [crops, images] : {std::array<std::int64_t, 2>{10, 64}, std::array<std::int64_t, 2>{1, 2500}})
      run(prototypes, crops, images);
}
