#include "train/units.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "kernels/kernels.hpp"
#include "model/fused.hpp"

namespace allosaur::train {

namespace {

constexpr std::int64_t kAlignment = 16;  // elements: parameters start on cache lines

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Part of a rank's slice with one pair of multipliers.
struct Segment {
  std::int64_t begin, count;  // within the slice
  ParameterGroup group;
};

}  // namespace

at::ScalarType scalar_type(Precision precision) noexcept {
  constexpr std::array kTypes{at::kFloat, at::kBFloat16, at::kHalf};
  return kTypes[static_cast<std::size_t>(precision)];
}

const char* name_of(Precision precision) noexcept {
  constexpr std::array kNames{"float32", "bfloat16", "float16"};
  return kNames[static_cast<std::size_t>(precision)];
}

ParameterGroup parameter_group(const NetworkParameter& p, int depth, const OptimizerConfig& config) {
  ParameterGroup group;
  const std::string& name = p.parameter.name;
  if (p.submodule == Submodule::backbone) {
    int layer = 0;  // patch embedding, positions and tokens
    if (p.parameter.unit.starts_with("blocks.")) layer = std::stoi(p.parameter.unit.substr(7)) + 1;
    if (p.parameter.unit == "norm") layer = depth + 1;
    group.lr_mult = std::pow(config.layerwise_decay, depth + 1 - layer);
    if (name.starts_with("patch_embed.")) group.lr_mult *= config.patch_embed_lr_mult;
  }
  if (name.ends_with(".bias") || name.find("norm") != std::string::npos || name.find("gamma") != std::string::npos)
    group.wd_mult = 0;
  group.last_layer = name.starts_with("last_layer.");
  return group;
}

struct Units::Unit {
  struct Member {
    at::Tensor leaf;  // the student's parameter
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t offset;
    std::shared_ptr<torch::autograd::Node> accumulator;  // kept alive: it carries the hook
  };
  std::string name;
  Submodule submodule = Submodule::backbone;
  std::vector<Member> members;
  std::int64_t size = 0;                    // elements with alignment, the same for any number of ranks
  std::int64_t padded = 0;                  // a multiple of the number of ranks
  at::Tensor student, teacher, gradient;    // compute type [padded]
  at::Tensor sum;                           // f32 [padded]: where 16-bit gradients add up in float32, else undefined
  at::Tensor student_slice, teacher_slice;  // compute type [padded / W], of the above
  at::Tensor gradient_slice;                // [padded / W], of `sum` or `gradient`
  at::Tensor master, ema, exp_avg, exp_avg_sq;  // f32 [padded / W]; in float32 the first two are the slices
  std::vector<Segment> segments;
  std::size_t missing = 0;  // members whose gradient backward has not delivered yet
  comm::Request reduction;

  const at::Tensor& reduced() const { return sum.defined() ? sum : gradient; }
};

Units::~Units() {
  for (Network* network : {&student_, &teacher_}) network->before_backbone_unit(nullptr);
}

Units::Units(comm::Communicator& group, Network& student, Network& teacher, const UnitsConfig& config)
    : group_(group), student_(student), teacher_(teacher), config_(config) {
  const at::NoGradGuard no_grad;
  const at::ScalarType compute = scalar_type(config.precision);
  const auto options = at::TensorOptions().dtype(at::kFloat).device(config.device);
  const std::int64_t ranks = group.size();
  const int depth = student.config().backbone.depth;
  const std::vector<NetworkParameter> student_parameters = student.parameters();
  const std::vector<NetworkParameter> teacher_parameters = teacher.parameters();
  for (std::size_t begin = 0; begin < student_parameters.size();) {
    std::size_t end = begin;
    auto unit = std::make_unique<Unit>();
    unit->name = student_parameters[begin].unit();
    unit->submodule = student_parameters[begin].submodule;
    for (; end < student_parameters.size() && student_parameters[end].unit() == unit->name; ++end) {
      const at::Tensor& values = *student_parameters[end].parameter.tensor;
      unit->members.push_back({{}, student_parameters[end].name(), values.sizes().vec(), unit->size, {}});
      unit->size += round_up(values.numel(), kAlignment);
    }
    unit->padded = round_up(unit->size, ranks);
    const std::int64_t share = unit->padded / ranks, first = share * group.rank();
    const bool head = unit->submodule != Submodule::backbone;
    const auto slice = [&](const at::Tensor& whole) { return whole.narrow(0, first, share); };

    // In float32 first: the masters are exact, and the compute type is rounded from them.
    at::Tensor student_values = at::zeros({unit->padded}, options), teacher_values = at::zeros({unit->padded}, options);
    for (std::size_t i = begin; i < end; ++i) {
      const Unit::Member& member = unit->members[i - begin];
      const at::Tensor& from = *student_parameters[i].parameter.tensor;
      student_values.narrow(0, member.offset, from.numel()).copy_(from.flatten());
      teacher_values.narrow(0, member.offset, from.numel()).copy_(teacher_parameters[i].parameter.tensor->flatten());
    }
    unit->student = student_values.to(compute);
    unit->teacher = teacher_values.to(compute);
    unit->gradient = at::zeros({unit->padded}, options.dtype(compute));
    if (compute != at::kFloat && (head || config.accumulate)) unit->sum = at::zeros({unit->padded}, options);
    unit->student_slice = slice(unit->student);
    unit->teacher_slice = slice(unit->teacher);
    unit->gradient_slice = slice(unit->reduced());
    unit->master = compute == at::kFloat ? unit->student_slice : slice(student_values).clone();
    unit->ema = compute == at::kFloat ? unit->teacher_slice : slice(teacher_values).clone();
    unit->exp_avg = at::zeros({share}, options);
    unit->exp_avg_sq = at::zeros({share}, options);

    for (std::size_t i = begin; i < end; ++i) {
      Unit::Member& member = unit->members[i - begin];
      at::Tensor& student_tensor = *student_parameters[i].parameter.tensor;
      const std::int64_t count = student_tensor.numel();
      member.leaf = unit->student.narrow(0, member.offset, count).view(member.shape).detach().requires_grad_(true);
      member.leaf.mutable_grad() = unit->gradient.narrow(0, member.offset, count).view(member.shape);
      student_tensor = member.leaf;
      *teacher_parameters[i].parameter.tensor = unit->teacher.narrow(0, member.offset, count).view(member.shape);
      member.accumulator = torch::autograd::impl::grad_accumulator(member.leaf);
      member.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
          [this, owner = unit.get()](const auto& outputs, const auto&) {
            if (owner->missing > 0 && --owner->missing == 0) issue_ready();
            return outputs;
          }));
      const std::int64_t from = std::max(member.offset, first), to = std::min(member.offset + count, first + share);
      if (from < to)
        unit->segments.push_back(
            {from - first, to - from, parameter_group(student_parameters[i], depth, config.optimizer)});
    }
    units_.push_back(std::move(unit));
    begin = end;
  }
  const auto wait_in = [this](Network& network, Gathers& gathers) {
    network.before_backbone_unit([this, &gathers](const std::string& unit) { wait_up_to(unit, gathers); });
  };
  wait_in(student, student_gathers_);
  wait_in(teacher, teacher_gathers_);
}

void Units::begin_gradients(bool first, bool last) {
  const at::NoGradGuard no_grad;
  issued_ = 0;
  for (auto& unit : units_) {
    if (unit->sum.defined()) {
      if (first)
        unit->sum.zero_();
      else
        unit->sum.add_(unit->gradient);
    }
    if (first || unit->sum.defined()) unit->gradient.zero_();
    unit->missing = last ? unit->members.size() : 0;
  }
}

void Units::issue_ready() {
  const at::NoGradGuard no_grad;
  while (issued_ < units_.size()) {
    Unit& unit = *units_[units_.size() - 1 - issued_];
    if (unit.missing > 0) return;
    ++issued_;
    if (unit.sum.defined()) unit.sum.add_(unit.gradient);
    unit.reduction = group_.start_reduce_scatter(unit.reduced(), unit.gradient_slice, comm::ReduceOp::sum);
  }
}

std::array<double, kSubmodules> Units::finish_backward() {
  const at::NoGradGuard no_grad;
  for (auto& unit : units_) unit->missing = 0;
  issue_ready();
  at::Tensor squares = at::zeros({kSubmodules}, at::TensorOptions().dtype(at::kDouble).device(config_.device));
  for (auto unit = units_.rbegin(); unit != units_.rend(); ++unit) {
    (*unit)->reduction.wait();
    const at::Tensor gradient = (*unit)->gradient_slice.to(at::kFloat);
    squares[static_cast<std::int64_t>((*unit)->submodule)] += at::dot(gradient, gradient);
  }
  squares = squares.cpu();  // here a device is waited for: what is read next is there
  std::array<double, kSubmodules> result{};
  std::copy_n(squares.data_ptr<double>(), kSubmodules, result.begin());
  return result;
}

void Units::update(const ScheduleValues& values, const std::array<double, kSubmodules>& scale, std::int64_t step) {
  const at::NoGradGuard no_grad;
  const OptimizerConfig& optimizer = config_.optimizer;
  kernels::AdamWEma adamw;
  adamw.beta1 = optimizer.beta1;
  adamw.beta2 = optimizer.beta2;
  adamw.eps = optimizer.eps;
  adamw.correction1 = 1 - std::pow(optimizer.beta1, static_cast<double>(step));
  adamw.correction2 = 1 - std::pow(optimizer.beta2, static_cast<double>(step));
  adamw.teacher_momentum = values.momentum;
  adamw.compute_type = model::kernel_type(units_.front()->student);
  for (auto& unit : units_) {
    adamw.gradient_type = model::kernel_type(unit->gradient_slice);
    adamw.gradient_scale = scale[static_cast<std::size_t>(unit->submodule)];
    for (const Segment& segment : unit->segments) {
      const auto part = [&](const at::Tensor& slice) { return slice.data_ptr<float>() + segment.begin; };
      const auto cast = [&](const at::Tensor& slice) {
        return config_.precision == Precision::float32 ? nullptr : slice.narrow(0, segment.begin, 1).data_ptr();
      };
      adamw.n = segment.count;
      adamw.lr = (segment.group.last_layer ? values.last_layer_lr : values.lr) * segment.group.lr_mult;
      adamw.weight_decay = values.weight_decay * segment.group.wd_mult;
      adamw.gradient = unit->gradient_slice.narrow(0, segment.begin, 1).const_data_ptr();
      adamw.exp_avg = part(unit->exp_avg);
      adamw.exp_avg_sq = part(unit->exp_avg_sq);
      adamw.weights = part(unit->master);
      adamw.teacher = part(unit->ema);
      adamw.student_compute = cast(unit->student_slice);
      adamw.teacher_compute = cast(unit->teacher_slice);
      kernels::run(model::kernel_device(unit->master), adamw);
    }
    teacher_changed(*unit);
  }
  gather_student();
}

void Units::update_teacher(double momentum) {
  const at::NoGradGuard no_grad;
  for (auto& unit : units_) {
    unit->ema.lerp_(unit->master, 1 - momentum);
    if (config_.precision != Precision::float32) unit->teacher_slice.copy_(unit->ema);
    teacher_changed(*unit);
  }
}

void Units::teacher_changed(Unit& unit) {
  stale_teacher_ = !config_.ema_teaches;
  if (config_.ema_teaches) gather_teacher(unit);
}

void Units::gather_teacher(Unit& unit) {
  teacher_gathers_.push_back({unit.name, group_.start_all_gather(unit.teacher_slice, unit.teacher)});
}

void Units::gather_student() {
  for (auto& unit : units_)
    student_gathers_.push_back({unit->name, group_.start_all_gather(unit->student_slice, unit->student)});
}

void Units::wait_up_to(std::string_view unit, Gathers& gathers) {
  const auto found = std::ranges::find(gathers, unit, &Gather::unit);
  if (found == gathers.end()) return;
  const auto start = std::chrono::steady_clock::now();
  for (auto gather = gathers.begin(); gather <= found; ++gather) gather->request.wait();
  gathers.erase(gathers.begin(), found + 1);
  waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Units::wait_for_teacher() {
  if (std::exchange(stale_teacher_, false))
    for (auto& unit : units_) gather_teacher(*unit);
  wait_up_to(units_.back()->name, teacher_gathers_);
}

void Units::wait_for_student() {
  wait_up_to(units_.back()->name, student_gathers_);
}

void Units::gather_weights() {
  const at::NoGradGuard no_grad;
  for (auto& unit : units_) {
    if (config_.precision != Precision::float32) {
      unit->student_slice.copy_(unit->master);
      unit->teacher_slice.copy_(unit->ema);
    }
    gather_teacher(*unit);
  }
  gather_student();
  wait_for_teacher();
  wait_for_student();
}

std::vector<Units::Slice> Units::slices() {
  std::vector<Slice> all;
  for (auto& unit : units_) {
    const std::int64_t share = unit->padded / group_.size();
    const std::int64_t first = std::min(share * group_.rank(), unit->size);
    const std::int64_t count = std::min(first + share, unit->size) - first;
    const auto add = [&](const char* kind, const at::Tensor& slice) {
      all.push_back({kind + unit->name, slice.narrow(0, 0, count), first, unit->size});
    };
    add("student.", unit->master);
    add("teacher.", unit->ema);
    add("exp_avg.", unit->exp_avg);
    add("exp_avg_sq.", unit->exp_avg_sq);
  }
  return all;
}

std::vector<Units::Place> Units::places() const {
  std::vector<Place> all;
  for (const auto& unit : units_)
    for (const Unit::Member& member : unit->members)
      all.push_back({unit->name, member.name, member.shape, member.offset});
  return all;
}

std::int64_t Units::parameter_count() const {
  std::int64_t count = 0;
  for (const auto& unit : units_)
    for (const Unit::Member& member : unit->members) count += member.leaf.numel();
  return count;
}

}  // namespace allosaur::train
