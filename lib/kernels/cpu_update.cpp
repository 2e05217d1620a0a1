#include <cmath>
#include <vector>

#include "kernels/backends.hpp"
#include "kernels/convert.hpp"
#include "kernels/parallel.hpp"
#include "kernels/update_factors.hpp"
#include "kernels/vector_math.hpp"

namespace allosaur::kernels::cpu {

namespace {

ALLOSAUR_VECTORISED void update(std::int64_t n, const UpdateFactors f, const float* __restrict gradient,
                                float* __restrict exp_avg, float* __restrict exp_avg_sq, float* __restrict weights,
                                float* __restrict teacher) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = gradient[i] * f.gradient_scale;
    const float m = exp_avg[i] + f.rate1 * (g - exp_avg[i]);
    const float v = exp_avg_sq[i] * f.beta2 + f.rate2 * (g * g);
    const float w = weights[i] * f.keep - f.step * (m / (std::sqrt(v) * f.inverse_root2 + f.eps));
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    weights[i] = w;
    teacher[i] += f.teacher_rate * (w - teacher[i]);
  }
}

}  // namespace

void run(const AdamWEma& k) {
  const UpdateFactors factors(k);
  for_pieces(k.n, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> converted(static_cast<std::size_t>(k.gradient_type == Type::f32 ? 0 : kGrain));
    const float* gradient = load(begin, end - begin, k.gradient, k.gradient_type, converted.data());
    update(end - begin, factors, gradient, k.exp_avg + begin, k.exp_avg_sq + begin, k.weights + begin,
           k.teacher + begin);
    if (k.student_compute != nullptr) store(begin, end - begin, k.weights + begin, k.compute_type, k.student_compute);
    if (k.teacher_compute != nullptr) store(begin, end - begin, k.teacher + begin, k.compute_type, k.teacher_compute);
  });
}

}  // namespace allosaur::kernels::cpu
