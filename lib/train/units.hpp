#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "train/network.hpp"

namespace allosaur::train {

/// Values of the schedules at one iteration.
struct ScheduleValues {
  double lr = 0, weight_decay = 0, momentum = 0, teacher_temperature = 0, last_layer_lr = 0;
};

struct OptimizerConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  double clip_grad = 3.0;  ///< largest L2 norm of a sub-module's gradient; 0 = no clipping
  double layerwise_decay = 0.9, patch_embed_lr_mult = 0.2;
};

/// Multipliers of one parameter (dinov2/utils/param_groups.py).
struct ParameterGroup {
  double lr_mult = 1, wd_mult = 1;
  bool last_layer = false;
};
ParameterGroup parameter_group(const NetworkParameter& parameter, int depth, const OptimizerConfig& config);

/// The type in which networks compute, and in which weights and gradients travel.
enum class Precision : std::uint8_t { float32, bfloat16, float16 };
at::ScalarType scalar_type(Precision precision) noexcept;
const char* name_of(Precision precision) noexcept;  ///< "float32", ...

/// How the units are kept.
struct UnitsConfig {
  OptimizerConfig optimizer;
  Precision precision = Precision::float32;
  bool accumulate = false;  ///< an iteration has several backward passes
  bool ema_teaches = true;  ///< false: the teacher is another network, and the EMA is gathered when it is waited for
  at::Device device = at::kCPU;
};

/// Student and its EMA (the teacher, unless that is a frozen network) as flat units, sharded over the ranks of a group.
///
/// A unit's parameters are views into one flat buffer of the compute type, its gradients into another; a rank owns 1/W
/// of every unit: float32 master weights, EMA and both Adam moments of that slice. In float32 the slice of the buffers
/// *is* master and EMA. Bytes a rank and parameter: 12 + 8/W in float32, 6 + 16/W in 16 bits; and 4 more where
/// gradients of 16 bits are summed in float32: in the heads, and everywhere when backward passes accumulate.
///
/// When the last backward pass has filled a unit, its reduce-scatter starts, in one fixed order on all ranks (last unit
/// first), while the next unit is still in backward. As a unit is updated the gathering of its teacher starts, and at
/// the end that of the student, which computes second. A backbone's forward waits for each unit as it comes to it, so
/// that later units arrive while it computes. Cost a rank and iteration, for P parameters of b bytes
/// (gradients of heads: 4 bytes): reduce-scatter bP(W-1)/W bytes, two all-gathers of bP(W-1)/W bytes (one where the EMA
/// does not teach).
class Units {
 public:
  /// Re-seats the parameters of both networks onto the units; their values are kept. The networks must outlive the
  /// units. `group` takes memory of the device.
  Units(comm::Communicator& group, Network& student, Network& teacher, const UnitsConfig& config);
  ~Units();
  Units(const Units&) = delete;
  Units& operator=(const Units&) = delete;

  /// Waits for what is left of the weights of the last update: before anything but the backbone's forward reads them.
  /// The teacher's collective where the EMA does not teach, and to be called before its backbone's forward too.
  void wait_for_teacher();
  void wait_for_student();
  /// Seconds that waiting for weights has taken since the last call, in the forwards too.
  double take_waited() noexcept { return std::exchange(waited_, 0); }
  /// Before each pass of an iteration through the student, whose loss adds gradients already in its forward: the first
  /// zeroes the gradients, the last arms the reduction. The losses are divided by the number of ranks.
  void begin_gradients(bool first, bool last);
  /// Collective. Completes the reduction, with zeros for what backward never reached. The rank's gradient slices then
  /// hold the mean over ranks. Returns this rank's part of the squared gradient norm of each sub-module, in which any
  /// element that is not finite shows.
  std::array<double, kSubmodules> finish_backward();
  /// AdamW on the student's slices with gradients scaled by `scale` (one factor a sub-module), then
  /// teacher <- m * teacher + (1 - m) * student, then starts gathering both. `step` counts updates from 1.
  void update(const ScheduleValues& values, const std::array<double, kSubmodules>& scale, std::int64_t step);
  /// The EMA alone, of an iteration without update.
  void update_teacher(double momentum);

  /// The four arrays of a unit that a checkpoint holds, as this rank's rows [first, first + n) of `total`.
  struct Slice {
    std::string name;   // "student.backbone.blocks.0", "teacher...", "exp_avg...", "exp_avg_sq..."
    at::Tensor values;  // f32 [n], a view: reading into it restores
    std::int64_t first, total;
  };
  std::vector<Slice> slices();
  /// Collective. Gathers student and teacher from restored slices.
  void gather_weights();

  /// Where each teacher parameter lies in its unit.
  struct Place {
    std::string unit, name;
    std::vector<std::int64_t> shape;
    std::int64_t offset;
  };
  std::vector<Place> places() const;
  std::int64_t parameter_count() const;

 private:
  struct Unit;
  /// A unit's weights on their way from the owners of their slices.
  struct Gather {
    std::string_view unit;
    comm::Request request;
  };
  using Gathers = std::deque<Gather>;  // in the order of the units
  void wait_up_to(std::string_view unit, Gathers& gathers);
  void issue_ready();
  void teacher_changed(Unit& unit);
  void gather_teacher(Unit& unit);
  void gather_student();

  comm::Communicator& group_;
  Network &student_, &teacher_;
  UnitsConfig config_;
  std::vector<std::unique_ptr<Unit>> units_;  // forward order
  std::size_t issued_ = 0;                    // units whose reduction has started, counted from the last
  Gathers teacher_gathers_, student_gathers_;
  bool stale_teacher_ = false;  // to be gathered when it is waited for
  double waited_ = 0;
};

}  // namespace allosaur::train
