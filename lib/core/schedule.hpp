#pragma once
#include <cstdint>

namespace allosaur::core {

/// A value that changes with the iteration: zero for `freeze` iterations, otherwise a linear warm-up from `start` that
/// reaches `base` on its last iteration, then half a cosine from `base` towards `final`, and `final` from `total` on
/// (the schedule of DINOv2's learning rate, weight decay and teacher momentum).
struct CosineSchedule {
  double base = 0, final = 0;
  std::int64_t total = 0;   ///< iterations
  std::int64_t warmup = 0;  ///< iterations, counted in total
  double start = 0;         ///< first value of the warm-up
  std::int64_t freeze = 0;  ///< iterations; the curve runs on beneath

  double value_at(std::int64_t iteration) const;
};

/// Linear from `start` to `final`, reached on the last of `warmup` iterations, then constant (the teacher's
/// temperature).
struct LinearSchedule {
  double start = 0, final = 0;
  std::int64_t warmup = 0;

  double value_at(std::int64_t iteration) const;
};

}  // namespace allosaur::core
