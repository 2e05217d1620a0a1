#pragma once
#include <chrono>
#include <deque>
#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include "train/units.hpp"

namespace allosaur::train {

/// Floating-point operations a second of a large product, as the linear layers do it: what utilisation is a share of.
/// Takes a fraction of a second, with smaller products where large ones take long.
double matrix_rate(const UnitsConfig& units, bool fast_products);

/// Seconds of this rank by section of an iteration.
struct StepSeconds {
  double gather = 0;   ///< waiting for the weights of the last update; on a GPU part of what waits
  double teacher = 0;  ///< its forward, the targets and their statistics
  double forward = 0, backward = 0;
  double reduce = 0;  ///< completing the gradients' reduction, and the reduction of losses and norms
  double update = 0;
};

/// Measures sections: on a CPU by the host's clock; on a GPU by events in its stream, which the host runs ahead of.
class SectionClock {
 public:
  explicit SectionClock(at::Device device) : device_(device) {}

  void begin() { mark(nullptr); }
  /// What ran since begin() or the last lap() was this section.
  void lap(double StepSeconds::*section) { mark(section); }
  /// Adds the sections that are over to `seconds`, without waiting for a device; the others come next time.
  void read(StepSeconds& seconds);

 private:
  struct Mark {
    double StepSeconds::*section;  // that ends here; nullptr: none
    std::chrono::steady_clock::time_point host;
    std::optional<c10::Event> event;  // of a GPU
  };
  void mark(double StepSeconds::*section);

  at::Device device_;
  std::deque<Mark> marks_;
};

/// Bytes that tensors on a device have taken at most; on the CPU, that the process has.
double peak_memory_bytes(const at::Device& device);

}  // namespace allosaur::train
