#include "train/plan.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <fmt/format.h>

namespace allosaur::train {

namespace {

std::int64_t linear_parameters(std::int64_t in, std::int64_t out, bool bias = true) {
  return in * out + (bias ? out : 0);
}

std::vector<Plan::Unit> units_of(const NetworkConfig& network) {
  const model::VitConfig& vit = network.backbone;
  const std::int64_t dim = vit.embed_dim, hidden = vit.hidden_dim(), grid = vit.grid();
  const std::int64_t pixels = std::int64_t{vit.in_channels} * vit.patch_size * vit.patch_size;
  const std::int64_t tokens = 1 + (1 + grid * grid) + vit.num_register_tokens + 1;  // class, positions, registers, mask
  const std::int64_t block = 4 * dim + (vit.layer_scale != 0 ? 2 * dim : 0) +
                             linear_parameters(dim, 3 * dim, vit.qkv_bias) +
                             linear_parameters(dim, dim, vit.proj_bias) +
                             linear_parameters(dim, vit.swiglu ? 2 * hidden : hidden, vit.ffn_bias) +
                             linear_parameters(hidden, dim, vit.ffn_bias);
  std::vector<Plan::Unit> units{{"backbone.patch_embed", tokens * dim + linear_parameters(pixels, dim)}};
  for (int i = 0; i < vit.depth; ++i) units.push_back({fmt::format("backbone.blocks.{}", i), block});
  units.push_back({"backbone.norm", 2 * dim});
  const auto add_head = [&](const char* name, const model::HeadConfig& head) {
    std::int64_t count = head.prototypes * (1 + head.bottleneck_dim);
    for (int i = 0; i < head.layers; ++i)
      count += linear_parameters(i == 0 ? head.in_dim : head.hidden_dim,
                                 i == head.layers - 1 ? head.bottleneck_dim : head.hidden_dim);
    units.push_back({name, count});
  };
  add_head("dino_head.all", network.dino_head);
  if (network.separate_ibot_head) add_head("ibot_head.all", network.ibot_head);
  return units;
}

/// The crops of one resolution; the global ones come first.
struct Resolution {
  std::int64_t crops;    // an image
  std::int64_t size;     // pixels a side
  std::int64_t patches;  // a crop
};

std::vector<Resolution> resolutions(const TrainConfig& config) {
  const model::VitConfig& vit = config.network.backbone;
  const data::AugmentConfig& augment = config.loader.augment;
  std::vector<Resolution> all;
  for (const auto& [crops, size] :
       {std::pair{2, augment.global_crops_size}, std::pair{augment.local_crops_number, augment.local_crops_size}}) {
    const std::int64_t side = size / vit.patch_size;
    if (crops > 0) all.push_back({crops, size, side * side});
  }
  return all;
}

/// The share of crops whose residual branch is computed: whole rows of each group, at least one (kept_rows()).
double kept_share(const Resolution& r, std::int64_t group, double rate) {
  const std::int64_t rows = r.crops * group;
  const auto kept = static_cast<std::int64_t>(static_cast<double>(rows) * (1 - rate));
  return static_cast<double>(std::max<std::int64_t>(1, kept)) / static_cast<double>(rows);
}

/// Patches of a group that iBOT compares (data::make_masks).
struct Compared {
  double mean = 0;
  std::int64_t most = 0;
};

Compared compared_patches(const TrainConfig& config) {
  const data::MaskConfig& mask = config.loader.mask;
  const std::int64_t patches = static_cast<std::int64_t>(mask.patches_per_side) * mask.patches_per_side;
  if (!config.objective.mask_input) {  // iBOT compares all patches
    const std::int64_t all = 2 * config.group * patches;
    return {.mean = static_cast<double>(all), .most = all};
  }
  const auto crops = static_cast<std::int64_t>(2.0 * static_cast<double>(config.group) * mask.sample_probability);
  Compared compared{.mean = static_cast<double>(crops * patches) * (mask.ratio_min + mask.ratio_max) / 2};
  for (std::int64_t i = 1; i <= crops; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(crops);
    compared.most += static_cast<std::int64_t>(static_cast<double>(patches) *
                                               (mask.ratio_min + (mask.ratio_max - mask.ratio_min) * share));
  }
  return compared;
}

/// Tokens of a crop.
std::int64_t tokens_of(const model::VitConfig& vit, const Resolution& r) {
  return 1 + vit.num_register_tokens + r.patches;
}

/// Adds one block's products over `rows` crops, computed `passes` times, in which `read` tokens of a crop are of use
/// behind attention: all but in the last block.
void add_block(Plan::Work& work, const model::VitConfig& vit, const Resolution& r, double rows, double passes,
               double read) {
  const double dim = vit.embed_dim, hidden = vit.hidden_dim(), length = static_cast<double>(tokens_of(vit, r));
  const double count = rows * length * passes, count_read = rows * read * passes;
  work.qkv += count * 2 * dim * 3 * dim;
  work.attention += count * 4 * length * dim;  // queries with keys, probabilities with values
  work.projection += count_read * 2 * dim * dim;
  work.feed_forward += count_read * 2 * dim * hidden * (vit.swiglu ? 3 : 2);
}

void add_head(Plan::Work& work, const model::HeadConfig& head, double rows, double passes) {
  for (int i = 0; i < head.layers; ++i)
    work.heads += rows * passes * 2 * (i == 0 ? head.in_dim : head.hidden_dim) *
                  (i == head.layers - 1 ? head.bottleneck_dim : head.hidden_dim);
  work.prototypes += rows * passes * 2 * head.bottleneck_dim * static_cast<double>(head.prototypes);
}

// A product's backward is two products of its size: the gradient of its input and of its weights.
constexpr double kTrained = 3;

/// The head that patches go through.
const model::HeadConfig& patch_head(const NetworkConfig& network) {
  return network.separate_ibot_head ? network.ibot_head : network.dino_head;
}

void add_work(Plan& plan, const TrainConfig& config, const NetworkConfig& teacher) {
  const NetworkConfig& student = config.network;
  const std::vector<Resolution> all = resolutions(config);
  const auto embedding = [](const model::VitConfig& vit, const Resolution& r) {
    return static_cast<double>(r.crops * r.patches) * 2 * vit.in_channels * vit.patch_size * vit.patch_size *
           vit.embed_dim;
  };
  const auto global_crops = static_cast<double>(all.front().crops);
  const double compared = compared_patches(config).mean / static_cast<double>(config.group);
  // Of the last block: class tokens, and in global crops the patches that iBOT compares.
  const auto read = [&](const model::VitConfig& vit, const Resolution& r, int block) {
    if (block + 1 < vit.depth) return static_cast<double>(tokens_of(vit, r));
    return 1 + (&r == &all.front() ? compared / global_crops : 0);
  };
  plan.teacher.patch_embedding = embedding(teacher.backbone, all.front());
  for (int i = 0; i < teacher.backbone.depth; ++i)
    add_block(plan.teacher, teacher.backbone, all.front(), global_crops, 1, read(teacher.backbone, all.front(), i));
  double class_tokens = 0;
  for (const Resolution& r : all) {
    const auto crops = static_cast<double>(r.crops);
    class_tokens += crops;
    plan.student.patch_embedding += 2 * embedding(student.backbone, r);  // pixels need no gradient
    for (int i = 0; i < student.backbone.depth; ++i)
      add_block(plan.student, student.backbone, r,
                crops * kept_share(r, config.group, config.drop_path_rates[static_cast<std::size_t>(i)]),
                kTrained + (student.checkpoint_activations ? 1 : 0), read(student.backbone, r, i));
  }
  add_head(plan.teacher, teacher.dino_head, global_crops, 1);
  add_head(plan.teacher, patch_head(teacher), compared, 1);
  add_head(plan.student, student.dino_head, class_tokens, kTrained);
  add_head(plan.student, patch_head(student), compared, kTrained);
}

/// What lives from forward to backward, counted over the operations of the model and the loss. A guide: the allocator's
/// rounding takes more.
void add_estimates(Plan& plan, const TrainConfig& config, std::int64_t element) {
  const NetworkConfig& network = config.network;
  const model::VitConfig& vit = network.backbone;
  const double dim = vit.embed_dim, hidden = vit.hidden_dim();
  // Of a token in a block (model/fused.hpp). Attention: the selected rows, q, k, v, the output in two layouts;
  // feed-forward: the selected rows, the hidden layer before its non-linearity.
  const double kept = (1 + 3 + 2) * dim + dim + (vit.swiglu ? 2 : 1) * hidden;
  double elements = 0, class_tokens = 0, values_of_images = 0;
  std::vector<double> blocks(config.drop_path_rates.size());
  for (const Resolution& r : resolutions(config)) {
    const auto crops = static_cast<double>(r.crops * config.micro_batch),
               tokens = crops * static_cast<double>(tokens_of(vit, r));
    class_tokens += crops;
    values_of_images += static_cast<double>(r.crops * plan.images * vit.in_channels * r.size * r.size);
    elements += crops * static_cast<double>(r.patches) * vit.in_channels * vit.patch_size * vit.patch_size;
    elements += 2 * tokens * dim;  // around the final norm
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      blocks[i] += tokens * kept * kept_share(r, config.group, config.drop_path_rates[i]);
      if (network.checkpoint_activations) elements += tokens * dim;
    }
  }
  // Backward adds the gradients of the block it is in; that block is then whole again where it was not kept.
  if (network.checkpoint_activations)
    elements += 2 * std::ranges::max(blocks);
  else
    elements += std::accumulate(blocks.begin(), blocks.end(), std::ranges::max(blocks));

  // Patches that iBOT compares, of an image.
  const double compared = static_cast<double>(compared_patches(config).most) / static_cast<double>(config.group);
  const auto at_once = static_cast<double>(config.micro_batch), images = static_cast<double>(plan.images);
  double loss = 0;
  const auto add_rows = [&](const model::HeadConfig& head, double student_rows, double teacher_rows) {
    elements += student_rows * (head.in_dim + 2.0 * (head.layers - 1) * head.hidden_dim + 3.0 * head.bottleneck_dim);
    loss += teacher_rows * static_cast<double>(head.prototypes * element);
  };
  // In 16 bits the last layer and its gradient are there in float32 too.
  const auto add_prototypes = [&](const model::HeadConfig& head) {
    if (element < 4) loss += static_cast<double>(head.prototypes * head.bottleneck_dim * (4 + 4));
  };
  add_rows(network.dino_head, class_tokens, 2 * images);
  add_rows(patch_head(network), compared * at_once, compared * images);
  add_prototypes(network.dino_head);
  if (network.separate_ibot_head) add_prototypes(network.ibot_head);
  plan.memory.activations = std::llround(elements) * element;
  plan.memory.loss = std::llround(loss);
  // Crops that the device finishes wait as bytes; those at work are there in both forms.
  const std::int64_t values = std::llround(values_of_images), batches = 1 + config.loader.prefetch;
  const std::int64_t finished = config.units.device.is_cpu() ? element : 0;
  plan.memory.images = values * (config.loader.augment.finish ? element * batches : batches + finished);
}

}  // namespace

std::int64_t Plan::Memory::total() const noexcept {
  return weights + gradients + moments + masters + staging + activations + loss + images + checkpoint;
}

std::int64_t Plan::Memory::on_device() const noexcept {
  return total() - images - checkpoint;
}

std::int64_t Plan::Sent::total() const noexcept {
  return gradients + student + teacher + centring + norms;
}

double Plan::Work::total() const noexcept {
  return patch_embedding + qkv + attention + projection + feed_forward + heads + prototypes;
}

std::int64_t Plan::parameters() const noexcept {
  std::int64_t count = 0;
  for (const Unit& unit : units) count += unit.parameters;
  return count;
}

Plan plan(const TrainConfig& config, int ranks, const NetworkConfig* distilled) {
  Plan plan;
  plan.ranks = ranks;
  plan.batch_size = config.batch_size;
  plan.images = config.batch_size / ranks;
  plan.iterations = config.iterations;
  plan.units = units_of(config.network);
  const std::int64_t parameters = plan.parameters();
  std::int64_t in_heads = 0, frozen = 0;
  for (const Plan::Unit& unit : plan.units)
    if (!unit.name.starts_with("backbone.")) in_heads += unit.parameters;
  if (distilled)
    for (const Plan::Unit& unit : units_of(*distilled)) frozen += unit.parameters;

  const bool full = config.units.precision == Precision::float32;
  const std::int64_t element = full ? 4 : 2;
  plan.memory.weights = (2 * parameters + frozen) * element;
  plan.memory.gradients = parameters * element;
  plan.memory.moments = 8 * parameters / ranks;
  plan.memory.masters = full ? 0 : 8 * parameters / ranks;
  plan.memory.staging = full ? 0 : 4 * (config.units.accumulate ? parameters : in_heads);
  add_estimates(plan, config, element);

  const auto ring = [ranks](std::int64_t bytes) { return bytes * (ranks - 1) / ranks; };
  plan.sent.gradients = ring((parameters - in_heads) * element + in_heads * 4);
  plan.sent.student = ring(parameters * element);
  plan.sent.teacher = distilled ? 0 : plan.sent.student;
  const std::int64_t prototypes = config.network.dino_head.prototypes + patch_head(config.network).prototypes;
  // Sinkhorn-Knopp: a maximum and a sum in each of three iterations; centring: one sum. An all-reduce is two rings.
  plan.sent.centring = 2 * ring(4 * prototypes * (config.objective.centering == Centering::sinkhorn_knopp ? 6 : 1));
  plan.sent.norms = 2 * ring(8 * (6 + kSubmodules));  // five losses and the wish to stop

  add_work(plan, config, distilled ? *distilled : config.network);
  plan.checkpoint_bytes = 16 * parameters + 8 * prototypes;  // weights, EMA and moments; centres with pending means
  plan.memory.checkpoint = 16 * parameters / ranks;
  plan.checkpoints = config.keep_last + 2;  // with the first, and the one being written
  if (config.keep_every > 0) plan.checkpoints += config.iterations / config.keep_every;
  return plan;
}

std::string describe(const Plan& plan) {
  const auto millions = [](std::int64_t n) { return static_cast<double>(n) * 1e-6; };
  const auto gigabytes = [](std::int64_t n) { return static_cast<double>(n) * 1e-9; };
  std::int64_t backbone = 0;
  std::string heads;
  for (const Plan::Unit& unit : plan.units) {
    if (unit.name.starts_with("backbone."))
      backbone += unit.parameters;
    else
      heads += fmt::format(", {} {:.1f} M", unit.name.substr(0, unit.name.find('.')), millions(unit.parameters));
  }
  const Plan::Memory& m = plan.memory;
  const Plan::Sent& s = plan.sent;
  const auto work = [](const Plan::Work& w) {
    return fmt::format(
        "{:.1f}: patch embedding {:.1f}, qkv {:.1f}, attention {:.1f}, projection {:.1f}, feed-forward {:.1f}, heads "
        "{:.1f}, prototypes {:.1f}.\n",
        w.total() * 1e-9, w.patch_embedding * 1e-9, w.qkv * 1e-9, w.attention * 1e-9, w.projection * 1e-9,
        w.feed_forward * 1e-9, w.heads * 1e-9, w.prototypes * 1e-9);
  };
  std::string text = fmt::format("Plan: {} iterations of {} images, {} on each of {} ranks.\n", plan.iterations,
                                 plan.batch_size, plan.images, plan.ranks);
  text += fmt::format("  Parameters of a network: {:.1f} M: backbone {:.1f} M{}.\n", millions(plan.parameters()),
                      millions(backbone), heads);
  text += fmt::format(
      "  Memory of a rank, GB: {:.4g}: weights {:.4g}, gradients {:.4g}, moments {:.4g}, masters {:.4g}, staging "
      "{:.4g}; estimated: activations {:.4g}, loss {:.4g}; on the host: images {:.4g}, checkpoint {:.4g}.\n",
      gigabytes(m.total()), gigabytes(m.weights), gigabytes(m.gradients), gigabytes(m.moments), gigabytes(m.masters),
      gigabytes(m.staging), gigabytes(m.activations), gigabytes(m.loss), gigabytes(m.images), gigabytes(m.checkpoint));
  text += fmt::format(
      "  Sent by a rank an iteration, GB: {:.4g}: gradients {:.4g}, student {:.4g}, teacher {:.4g}, centring {:.4g}.\n",
      gigabytes(s.total()), gigabytes(s.gradients), gigabytes(s.student), gigabytes(s.teacher), gigabytes(s.centring));
  text += fmt::format("  Work an image, GFLOP: {:.1f}.\n", (plan.teacher.total() + plan.student.total()) * 1e-9);
  text += fmt::format("    Teacher {}    Student {}", work(plan.teacher), work(plan.student));
  text += fmt::format("  Checkpoint on disk, GB: {:.4g}; all at once: {:.4g}.", gigabytes(plan.checkpoint_bytes),
                      gigabytes(plan.checkpoint_bytes * plan.checkpoints));
  return text;
}

}  // namespace allosaur::train
