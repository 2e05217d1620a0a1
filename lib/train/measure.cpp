#include "train/measure.hpp"

#include <sys/resource.h>

#include <chrono>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#ifdef ALLOSAUR_HAVE_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

#include "model/linear.hpp"

namespace allosaur::train {

double matrix_rate(const UnitsConfig& units, bool fast_products) {
  using Clock = std::chrono::steady_clock;
  constexpr std::int64_t kRepeats = 3;
  constexpr double kLongEnough = 0.1;  // seconds; a CPU's 16-bit products can be slower by orders of magnitude
  const at::NoGradGuard no_grad;
  const std::int64_t largest = units.device.is_cuda() ? 8192 : 1024;
  for (std::int64_t side = 128;; side *= 2) {
    const at::Tensor x = at::ones({side, side}, at::TensorOptions(units.device).dtype(scalar_type(units.precision)));
    const auto multiply = [&] { return model::linear(x, x, x[0], fast_products); };
    multiply()[0][0].item<double>();
    const auto start = Clock::now();
    for (std::int64_t i = 1; i < kRepeats; ++i) multiply();
    multiply()[0][0].item<double>();  // waits for a device
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (side == largest || seconds > kLongEnough)
      return 2.0 * static_cast<double>(kRepeats * side * side * side) / seconds;
  }
}

void SectionClock::mark(double StepSeconds::*section) {
  Mark& last = marks_.emplace_back(section, std::chrono::steady_clock::now(), std::nullopt);
  if (device_.is_cpu()) return;
  last.event.emplace(device_.type(), c10::EventFlag::BACKEND_DEFAULT);  // the other kind keeps no time
  last.event->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

void SectionClock::read(StepSeconds& seconds) {
  for (; marks_.size() > 1; marks_.pop_front()) {
    const Mark &from = marks_[0], &to = marks_[1];
    if (to.event && !to.event->query()) return;
    if (to.section != nullptr)
      seconds.*to.section += to.event ? from.event->elapsedTime(*to.event) * 1e-3
                                      : std::chrono::duration<double>(to.host - from.host).count();
  }
}

double peak_memory_bytes(const at::Device& device) {
#ifdef ALLOSAUR_HAVE_CUDA
  if (device.is_cuda())
    return static_cast<double>(c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].peak);
#endif
  (void)device;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

}  // namespace allosaur::train
