#include "train/units.hpp"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace allosaur::train {

namespace {

constexpr std::int64_t kAlignment = 16;  // elements: parameters start on cache lines

std::int64_t round_up(std::int64_t value, std::int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/// Part of a rank's slice with one pair of multipliers.
struct Segment {
  std::int64_t begin, count;  // within the slice
  ParameterGroup group;
};

}  // namespace

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
  std::int64_t size = 0;    // elements with alignment, the same for any number of ranks
  std::int64_t padded = 0;  // a multiple of the number of ranks
  at::Tensor student, teacher, gradient;                                        // f32 [padded]
  at::Tensor student_slice, teacher_slice, gradient_slice, exp_avg, exp_avg_sq;  // f32 [padded / W]
  std::vector<Segment> segments;
  std::size_t missing = 0;  // members whose gradient backward has not delivered yet
  comm::Request reduction;
};

Units::~Units() = default;

Units::Units(comm::Communicator& group, Network& student, Network& teacher, const OptimizerConfig& config,
             at::Device device)
    : group_(group), config_(config) {
  const at::NoGradGuard no_grad;
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
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
    unit->student = at::zeros({unit->padded}, options);
    unit->teacher = at::zeros({unit->padded}, options);
    unit->gradient = at::zeros({unit->padded}, options);
    const std::int64_t share = unit->padded / ranks, first = share * group.rank();
    unit->student_slice = unit->student.narrow(0, first, share);
    unit->teacher_slice = unit->teacher.narrow(0, first, share);
    unit->gradient_slice = unit->gradient.narrow(0, first, share);
    unit->exp_avg = at::zeros({share}, options);
    unit->exp_avg_sq = at::zeros({share}, options);
    for (std::size_t i = begin; i < end; ++i) {
      Unit::Member& member = unit->members[i - begin];
      at::Tensor& student_tensor = *student_parameters[i].parameter.tensor;
      at::Tensor& teacher_tensor = *teacher_parameters[i].parameter.tensor;
      const std::int64_t count = student_tensor.numel();
      unit->student.narrow(0, member.offset, count).copy_(student_tensor.flatten());
      unit->teacher.narrow(0, member.offset, count).copy_(teacher_tensor.flatten());
      member.leaf = unit->student.narrow(0, member.offset, count).view(member.shape).detach().requires_grad_(true);
      member.leaf.mutable_grad() = unit->gradient.narrow(0, member.offset, count).view(member.shape);
      student_tensor = member.leaf;
      teacher_tensor = unit->teacher.narrow(0, member.offset, count).view(member.shape);
      member.accumulator = torch::autograd::impl::grad_accumulator(member.leaf);
      member.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
          [this, owner = unit.get()](const auto& outputs, const auto&) {
            if (owner->missing > 0 && --owner->missing == 0) issue_ready();
            return outputs;
          }));
      const std::int64_t from = std::max(member.offset, first), to = std::min(member.offset + count, first + share);
      if (from < to)
        unit->segments.push_back({from - first, to - from, parameter_group(student_parameters[i], depth, config)});
    }
    units_.push_back(std::move(unit));
    begin = end;
  }
}

void Units::begin_backward() {
  const at::NoGradGuard no_grad;
  issued_ = 0;
  for (auto& unit : units_) {
    unit->gradient.zero_();
    unit->missing = unit->members.size();
  }
}

void Units::issue_ready() {
  while (issued_ < units_.size()) {
    Unit& unit = *units_[units_.size() - 1 - issued_];
    if (unit.missing > 0) return;
    ++issued_;
    unit.reduction = group_.start_reduce_scatter(unit.gradient, unit.gradient_slice, comm::ReduceOp::sum);
  }
}

std::array<double, kSubmodules> Units::finish_backward() {
  const at::NoGradGuard no_grad;
  for (auto& unit : units_) unit->missing = 0;
  issue_ready();
  std::array<double, kSubmodules> squares{};
  for (auto unit = units_.rbegin(); unit != units_.rend(); ++unit) {
    (*unit)->reduction.wait();
    const at::Tensor& gradient = (*unit)->gradient_slice;
    squares[static_cast<std::size_t>((*unit)->submodule)] += at::dot(gradient, gradient).item<double>();
  }
  return squares;
}

void Units::update(const ScheduleValues& values, const std::array<double, kSubmodules>& clip, std::int64_t step) {
  const at::NoGradGuard no_grad;
  const double correction1 = 1 - std::pow(config_.beta1, static_cast<double>(step));
  const double correction2 = 1 - std::pow(config_.beta2, static_cast<double>(step));
  for (auto& unit : units_) {
    const at::Tensor gradient = unit->gradient_slice.mul_(clip[static_cast<std::size_t>(unit->submodule)]);
    unit->exp_avg.mul_(config_.beta1).add_(gradient, 1 - config_.beta1);
    unit->exp_avg_sq.mul_(config_.beta2).addcmul_(gradient, gradient, 1 - config_.beta2);
    const at::Tensor denominator = (unit->exp_avg_sq.sqrt() / std::sqrt(correction2)).add_(config_.eps);
    for (const Segment& segment : unit->segments) {
      const double lr = (segment.group.last_layer ? values.last_layer_lr : values.lr) * segment.group.lr_mult;
      at::Tensor weights = unit->student_slice.narrow(0, segment.begin, segment.count);
      weights.mul_(1 - lr * values.weight_decay * segment.group.wd_mult);
      weights.addcdiv_(unit->exp_avg.narrow(0, segment.begin, segment.count),
                       denominator.narrow(0, segment.begin, segment.count), -lr / correction1);
    }
    unit->teacher_slice.mul_(values.momentum).add_(unit->student_slice, 1 - values.momentum);
  }
  start_gather();
}

void Units::start_gather() {
  for (auto& unit : units_) {
    gathers_.push_back(group_.start_all_gather(unit->student_slice, unit->student));
    gathers_.push_back(group_.start_all_gather(unit->teacher_slice, unit->teacher));
  }
}

void Units::wait_for_weights() {
  for (comm::Request& request : gathers_) request.wait();
  gathers_.clear();
}

void Units::gather_weights() {
  start_gather();
  wait_for_weights();
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
    add("student.", unit->student_slice);
    add("teacher.", unit->teacher_slice);
    add("exp_avg.", unit->exp_avg);
    add("exp_avg_sq.", unit->exp_avg_sq);
  }
  return all;
}

std::vector<Units::Place> Units::places() const {
  std::vector<Place> all;
  for (const auto& unit : units_)
    for (const Unit::Member& member : unit->members) all.push_back({unit->name, member.name, member.shape, member.offset});
  return all;
}

std::int64_t Units::parameter_count() const {
  std::int64_t count = 0;
  for (const auto& unit : units_)
    for (const Unit::Member& member : unit->members) count += member.leaf.numel();
  return count;
}

}  // namespace allosaur::train
