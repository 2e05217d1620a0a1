#include "train/config.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/schedule.hpp"
#include "data/pixels.hpp"

namespace allosaur::train {

namespace {

using core::OptionKind;
using Numbers = std::vector<double>;

const Numbers kEffectiveBlur{0.0, 0.9, 0.5}, kNominalBlur{1.0, 0.1, 0.5};  // dinov2/data/transforms.py

bool cpu_has_amx() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("amx-bf16") != 0;
#else
  return false;
#endif
}

Precision precision(const std::string& name) {
  if (name == "bfloat16") return Precision::bfloat16;
  return name == "float16" ? Precision::float16 : Precision::float32;
}

/// Two numbers, low <= high.
std::pair<double, double> range(const core::Options& options, const char* key) {
  const Numbers& values = options.get<Numbers>(key);
  if (values[0] > values[1])
    throw core::UsageError(fmt::format("{} is {},{}: the lower number comes first.", key, values[0], values[1]));
  return {values[0], values[1]};
}

constexpr std::string_view kMemoryEfficient = "_memeff";  // behind an architecture in official configurations: the same

std::vector<std::string> architectures() {
  std::vector<std::string> names = model::vit_presets();
  for (const std::string& preset : model::vit_presets()) names.push_back(fmt::format("{}{}", preset, kMemoryEfficient));
  return names;
}

model::VitConfig backbone_config(const core::Options& options) {
  std::string arch = options.text("student.arch");
  if (arch.ends_with(kMemoryEfficient)) arch.resize(arch.size() - kMemoryEfficient.size());
  model::VitConfig vit = model::vit_preset(arch);
  const auto override_with = [&](const char* key, int& value) {
    if (const int given = options.small_integer(key); given != 0) value = given;
  };
  override_with("student.embed_dim", vit.embed_dim);
  override_with("student.depth", vit.depth);
  override_with("student.num_heads", vit.num_heads);
  vit.image_size = options.small_integer("crops.global_crops_size");
  vit.patch_size = options.small_integer("student.patch_size");
  vit.swiglu = options.text("student.ffn_layer") != "mlp";
  vit.qkv_bias = options.flag("student.qkv_bias");
  vit.proj_bias = options.flag("student.proj_bias");
  vit.ffn_bias = options.flag("student.ffn_bias");
  vit.num_register_tokens = options.small_integer("student.num_register_tokens");
  vit.layer_scale = options.number("student.layerscale");
  vit.interpolate_antialias = options.flag("student.interpolate_antialias");
  vit.interpolate_offset = options.number("student.interpolate_offset");
  for (const char* key : {"crops.global_crops_size", "crops.local_crops_size"})
    if (options.integer(key) % vit.patch_size != 0)
      throw core::UsageError(
          fmt::format("{} is {}, not a multiple of student.patch_size {}.", key, options.integer(key), vit.patch_size));
  return vit;
}

data::AugmentConfig augment_config(const core::Options& o) {
  data::AugmentConfig a;
  a.pixels = data::read_pixel_config(o);
  a.global_crops_size = o.small_integer("crops.global_crops_size");
  a.local_crops_size = o.small_integer("crops.local_crops_size");
  a.local_crops_number = o.small_integer("crops.local_crops_number");
  std::tie(a.global_scale_min, a.global_scale_max) = range(o, "crops.global_crops_scale");
  std::tie(a.local_scale_min, a.local_scale_max) = range(o, "crops.local_crops_scale");
  std::tie(a.aspect_min, a.aspect_max) = range(o, "crops.aspect_ratio");
  a.flip = o.number("crops.flip");
  a.jitter = o.number("crops.jitter");
  a.brightness = o.number("crops.brightness");
  a.contrast = o.number("crops.contrast");
  a.saturation = o.number("crops.saturation");
  a.hue = o.number("crops.hue");
  a.grayscale = o.number("crops.grayscale");
  const Numbers& given = o.get<Numbers>("crops.blur");
  const bool nominal = o.flag("crops.nominal_blur");
  if (nominal && given != kEffectiveBlur)
    throw core::UsageError("crops.blur and crops.nominal_blur both say how probable blur is: give one of them.");
  const Numbers& blur = nominal ? kNominalBlur : given;
  a.blur_global1 = blur[0];
  a.blur_global2 = blur[1];
  a.blur_local = blur[2];
  std::tie(a.blur_sigma_min, a.blur_sigma_max) = range(o, "crops.blur_sigma");
  a.solarize_global2 = o.number("crops.solarize");
  a.solarize_threshold = o.small_integer("crops.solarize_threshold");
  a.dct_scaling = o.flag("crops.dct_scaling");
  a.finish = !o.flag("crops.finish_on_device");
  return a;
}

model::HeadConfig head_config(const core::Options& options, const std::string& prefix, int embed_dim) {
  model::HeadConfig head;
  head.in_dim = embed_dim;
  head.prototypes = options.integer(prefix + ".head_n_prototypes");
  head.bottleneck_dim = options.small_integer(prefix + ".head_bottleneck_dim");
  head.layers = options.small_integer(prefix + ".head_nlayers");
  head.hidden_dim = options.small_integer(prefix + ".head_hidden_dim");
  return head;
}

}  // namespace

void declare_options(core::Options& o) {
  o.section("Pretraining: data");
  o.add("train.dataset_path", std::vector<std::string>(),
        "Images to learn from: one or more folders, tar shards, lists or packed images", OptionKind::free);
  o.add("train.dataset_weights", Numbers(),
        "Share of each source in the samples, to any scale; none: every image comes equally often")
      .above(0);
  o.add("train.batch_size", std::int64_t{0},
        "Images an iteration over all ranks; 0 = train.batch_size_per_gpu on every rank that the run began with")
      .at_least(0);
  o.add("train.batch_size_per_gpu", std::int64_t{64},
        "Images a group: KoLeo, mask quotas and stochastic depth act within groups, whichever rank holds them")
      .at_least(1);
  o.add("train.num_workers", std::int64_t{0}, "Loader threads a rank; 0 = the rank's compute threads", OptionKind::free)
      .at_least(0)
      .fits_int();
  o.add("train.seed", std::int64_t{0}, "Seed of everything random");
  o.add("crops.global_crops_size", std::int64_t{224}, "Pixels a side of the 2 global crops").at_least(1).fits_int();
  o.add("crops.local_crops_size", std::int64_t{96}, "Pixels a side of the local crops").at_least(1).fits_int();
  o.add("crops.local_crops_number", std::int64_t{8}, "Local crops an image").at_least(0).fits_int();
  o.add("crops.global_crops_scale", Numbers{0.32, 1.0}, "Share of the image's area in a global crop")
      .values(2)
      .above(0)
      .at_most(1);
  o.add("crops.local_crops_scale", Numbers{0.05, 0.32}, "Share of the image's area in a local crop")
      .values(2)
      .above(0)
      .at_most(1);
  o.add("crops.aspect_ratio", Numbers{3.0 / 4, 4.0 / 3}, "Range of the width of a crop's box over its height")
      .values(2)
      .above(0);
  o.add("crops.flip", 0.5, "Probability of a horizontal flip").within(0, 1);
  o.add("crops.jitter", 0.8, "Probability of colour jitter").within(0, 1);
  o.add("crops.brightness", 0.4, "Jitter: the factor is drawn from 1 - this to 1 + this").at_least(0);
  o.add("crops.contrast", 0.4, "... as crops.brightness").at_least(0);
  o.add("crops.saturation", 0.2, "... as crops.brightness").at_least(0);
  o.add("crops.hue", 0.1, "Jitter: the hue is turned by up to this share of the circle, either way").within(0, 0.5);
  o.add("crops.grayscale", 0.2, "Probability of grey").within(0, 1);
  o.add("crops.blur", kEffectiveBlur,
        "Probability of blur for global crop 1, global crop 2 and local crops (the published code's effective values)")
      .values(3)
      .within(0, 1);
  o.add("crops.nominal_blur", false,
        "Blur with the probabilities 1.0,0.1,0.5, which the published code names, instead of those it has in effect");
  o.add("crops.blur_sigma", Numbers{0.1, 2.0}, "Range of the standard deviation of blur, in pixels").values(2).above(0);
  o.add("crops.solarize", 0.2, "Probability of solarisation of global crop 2").within(0, 1);
  o.add("crops.solarize_threshold", std::int64_t{128}, "Solarisation inverts values of this and more")
      .within(0, 256)
      .fits_int();
  o.add("crops.dct_scaling", true,
        "Decode a JPEG at the smallest of 1, 1/2, 1/4, 1/8 of its size that serves every crop; false: whole, as "
        "published");
  o.add("crops.finish_on_device", false,
        "Compute colours, blur, solarisation and normalisation of crops where the networks are, a GPU say, rather than "
        "in the loader's threads; the crops are the same",
        OptionKind::free);

  o.section("Pretraining: networks");
  o.add("student.arch", std::string("vit_large"), "Architecture of the backbone").one_of(architectures());
  o.add("student.embed_dim", std::int64_t{0}, "Width instead of the architecture's; 0 = the architecture's")
      .at_least(0)
      .fits_int();
  o.add("student.depth", std::int64_t{0}, "Blocks instead of the architecture's; 0 = the architecture's")
      .at_least(0)
      .fits_int();
  o.add("student.num_heads", std::int64_t{0}, "Attention heads instead of the architecture's; 0 = the architecture's")
      .at_least(0)
      .fits_int();
  o.add("student.patch_size", std::int64_t{16}, "Pixels a side of a patch").at_least(1).fits_int();
  o.add("student.drop_path_rate", 0.3, "Share of residual branches skipped by stochastic depth").at_least(0).below(1);
  o.add("student.drop_path_uniform", true, "The same rate in all blocks; false: linear from 0 to the rate");
  o.add("student.layerscale", 1e-5, "Initial LayerScale; 0 = none").at_least(0);
  o.add("student.ffn_layer", std::string("mlp"), "mlp, or swiglu (swiglufused is the same)")
      .one_of({"mlp", "swiglu", "swiglufused"});
  o.add("student.qkv_bias", true, "Biases of queries, keys and values");
  o.add("student.proj_bias", true, "Biases of attention's output layer");
  o.add("student.ffn_bias", true, "Biases of the feed-forward layers");
  o.add("student.num_register_tokens", std::int64_t{0}, "Register tokens").at_least(0).fits_int();
  o.add("student.interpolate_antialias", false, "Antialias when resizing position embeddings");
  o.add("student.interpolate_offset", 0.1, "Offset of the scale when resizing position embeddings; 0 = resize by size")
      .at_least(0);
  o.add("student.pretrained_weights", std::string(),
        "Backbone weights to start from (a .safetensors or .pth file, or a checkpoint folder)", OptionKind::free);
  o.add(
      "train.start_from", std::string(),
      "Checkpoint folder of another run to start from: student, teacher and heads, with a new optimiser and schedules",
      OptionKind::free);
  o.add(
      "distillation.checkpoint_path", std::string(),
      "Checkpoint folder whose teacher is distilled: frozen and unmasked, iBOT on all patches; the EMA of the student "
      "is the result",
      OptionKind::free);

  o.section("Pretraining: objective");
  for (const std::string head : {"dino", "ibot"}) {
    o.add(head + ".loss_weight", 1.0, "Weight of the loss").at_least(0);
    o.add(head + ".head_n_prototypes", std::int64_t{65536}, "Prototypes").at_least(1);
    o.add(head + ".head_bottleneck_dim", std::int64_t{256}, "Width of the normalised embedding").at_least(1).fits_int();
    o.add(head + ".head_nlayers", std::int64_t{3}, "Layers of the projection").at_least(1).fits_int();
    o.add(head + ".head_hidden_dim", std::int64_t{2048}, "Width of its hidden layers").at_least(1).fits_int();
  }
  o.add("dino.koleo_loss_weight", 0.1, "Weight of the KoLeo regulariser on the class tokens of each global crop")
      .at_least(0);
  o.add("ibot.separate_head", false, "A head of its own for patches; false: they go through the DINO head");
  o.add("ibot.mask_sample_probability", 0.5, "Share of global crops that are masked").within(0, 1);
  o.add("ibot.mask_ratio_min_max", Numbers{0.1, 0.5}, "Range of the masked share of a masked crop")
      .values(2)
      .within(0, 1);
  o.add("train.centering", std::string("centering"), "centering (softmax) or sinkhorn_knopp")
      .one_of({"centering", "sinkhorn_knopp"});
  o.add("teacher.momentum_teacher", 0.992, "Momentum of the EMA teacher at the start").within(0, 1);
  o.add("teacher.final_momentum_teacher", 1.0, "... and at the end").within(0, 1);
  o.add("teacher.warmup_teacher_temp", 0.04, "Temperature of the teacher at the start").above(0);
  o.add("teacher.teacher_temp", 0.07, "... and after teacher.warmup_teacher_temp_epochs").above(0);
  o.add("teacher.warmup_teacher_temp_epochs", 30.0, "Epochs of its linear warm-up").at_least(0);

  o.section("Pretraining: optimisation");
  o.add("optim.epochs", 100.0, "Length of the run, in units of train.OFFICIAL_EPOCH_LENGTH iterations").above(0);
  o.add("train.OFFICIAL_EPOCH_LENGTH", std::int64_t{1250},
        "Iterations an epoch (a unit only, whatever the size of the data)")
      .at_least(1);
  o.add("optim.base_lr", 0.004, "Learning rate at the reference batch of 1024").at_least(0);
  o.add("optim.scaling_rule", std::string("sqrt_wrt_1024"),
        "sqrt_wrt_1024: base_lr * sqrt(batch / 1024); none: base_lr as it is")
      .one_of({"sqrt_wrt_1024", "none"});
  o.add("optim.min_lr", 1e-6, "Learning rate at the end").at_least(0);
  o.add("optim.warmup_epochs", 10.0, "Epochs of linear warm-up").at_least(0);
  o.add("optim.weight_decay", 0.04, "Weight decay at the start").at_least(0);
  o.add("optim.weight_decay_end", 0.4, "... and at the end").at_least(0);
  o.add("optim.clip_grad", 3.0,
        "Largest gradient norm of backbone, DINO head and iBOT head, each for itself; 0 = no clipping")
      .at_least(0);
  o.add("optim.freeze_last_layer_epochs", 1.0, "Epochs without learning in the heads' last layer").at_least(0);
  o.add("optim.patch_embed_lr_mult", 0.2, "Learning-rate factor of the patch embedding").at_least(0);
  o.add("optim.layerwise_decay", 0.9, "Learning-rate factor from each block to the one below").above(0);
  o.add("optim.adamw_beta1", 0.9, "AdamW's first moment decay").at_least(0).below(1);
  o.add("optim.adamw_beta2", 0.999, "AdamW's second moment decay").at_least(0).below(1);
  o.add("train.matmul_precision", std::string("highest"),
        "Linear layers on CPUs: highest; medium (factors rounded to bfloat16, sums in float32; needs AMX); auto "
        "(medium where the CPU has AMX)")
      .one_of({"highest", "medium", "auto"});

  o.add("train.precision", std::string("float32"),
        "Type of weights, activations and gradients in the networks: float32, bfloat16, or float16 with dynamic loss "
        "scaling; losses, master weights and optimiser are in float32")
      .one_of({"float32", "bfloat16", "float16"});
  o.add("train.micro_batch_size", std::int64_t{0},
        "Images of a rank that pass through the student at once, gradients adding up; 0 = all of its share",
        OptionKind::free)
      .at_least(0);
  o.add("student.checkpoint_activations", false,
        "Keep only the inputs of the blocks and compute their activations again in backward", OptionKind::free);
  o.add("train.max_bad_iterations", std::int64_t{3},
        "Iterations in a row that may be skipped because a loss or gradient is not finite", OptionKind::free)
      .at_least(0);

  o.section("Pretraining: checkpoints and log");
  o.add("train.checkpoint_period", std::int64_t{0}, "Iterations between checkpoints; 0 = 3 epochs", OptionKind::free)
      .at_least(0);
  o.add("train.stop_at", std::int64_t{0},
        "Stop after this iteration, with a checkpoint, as if asked to; 0 = at the end", OptionKind::free)
      .at_least(0);
  o.add("train.keep_last", std::int64_t{3}, "Checkpoints to keep", OptionKind::free).at_least(1);
  o.add("train.keep_every", std::int64_t{0}, "Also keep those at multiples of this iteration; 0 = none",
        OptionKind::free)
      .at_least(0);
  o.add("train.log_period", std::int64_t{10}, "Iterations between lines of metrics.jsonl", OptionKind::free)
      .at_least(1);

  for (const char* network : {"teacher", "student"})
    for (const char* module : {"backbone", "dino_head", "ibot_head"}) {
      const std::string prefix = fmt::format("compute_precision.{}.{}.", network, module);
      o.refuse(prefix + "sharding_strategy", "optimiser state is always sharded over all ranks");
      for (const char* type : {"param_dtype", "reduce_dtype", "buffer_dtype"})
        o.refuse(prefix + "mixed_precision." + type, "use train.precision");
    }
  o.refuse("compute_precision.grad_scaler", "float16 always scales its loss");
  o.refuse("student.block_chunks", "blocks are always sharded one by one");
  o.refuse("train.cache_dataset", "data sets need no cache");
  o.refuse("train.saveckp_freq", "use train.checkpoint_period");
  o.refuse("train.output_dir", "use output");
  o.refuse("MODEL.WEIGHTS", "use student.pretrained_weights to start from weights; a run continues by itself");
}

TrainConfig read_config(const core::Options& o, int ranks, std::optional<std::int64_t> former_batch_size) {
  TrainConfig c;
  c.network.backbone = backbone_config(o);
  c.network.separate_ibot_head = o.flag("ibot.separate_head");
  c.network.dino_head = head_config(o, "dino", c.network.backbone.embed_dim);
  c.network.ibot_head = head_config(o, "ibot", c.network.backbone.embed_dim);
  c.network.checkpoint_activations = o.flag("student.checkpoint_activations");
  c.pretrained_weights = o.text("student.pretrained_weights");
  c.start_from = o.text("train.start_from");
  c.distilled_from = o.text("distillation.checkpoint_path");
  c.units.ema_teaches = c.distilled_from.empty();
  if (!c.pretrained_weights.empty() && !c.start_from.empty())
    throw core::UsageError("student.pretrained_weights and train.start_from are both given: start from one of them.");
  const int depth = c.network.backbone.depth;
  const double rate = o.number("student.drop_path_rate");
  for (int i = 0; i < depth; ++i)
    c.drop_path_rates.push_back(o.flag("student.drop_path_uniform") || depth == 1 ? rate : rate * i / (depth - 1));

  c.objective.dino_weight = o.number("dino.loss_weight");
  c.objective.ibot_weight = o.number("ibot.loss_weight");
  c.objective.koleo_weight = o.number("dino.koleo_loss_weight");
  c.objective.centering = o.text("train.centering") == "centering" ? Centering::softmax : Centering::sinkhorn_knopp;

  OptimizerConfig& optimizer = c.units.optimizer;
  optimizer.beta1 = o.number("optim.adamw_beta1");
  optimizer.beta2 = o.number("optim.adamw_beta2");
  optimizer.clip_grad = o.number("optim.clip_grad");
  optimizer.layerwise_decay = o.number("optim.layerwise_decay");
  optimizer.patch_embed_lr_mult = o.number("optim.patch_embed_lr_mult");
  c.units.precision = precision(o.text("train.precision"));

  c.seed = static_cast<std::uint64_t>(o.integer("train.seed"));
  c.group = o.integer("train.batch_size_per_gpu");
  c.batch_size = o.integer("train.batch_size");
  if (c.batch_size == 0) c.batch_size = former_batch_size.value_or(c.group * ranks);
  if (c.batch_size % ranks != 0)
    throw core::UsageError(fmt::format("train.batch_size {} cannot be shared by {} ranks: make it a multiple of {}.",
                                       c.batch_size, ranks, ranks));
  if (c.batch_size / ranks % c.group != 0)
    throw core::UsageError(
        fmt::format("A rank's share of {} images (train.batch_size {} over {} ranks) is not a multiple of "
                    "train.batch_size_per_gpu {}, and a group never spans ranks: choose a divisor of {}.",
                    c.batch_size / ranks, c.batch_size, ranks, c.group, c.batch_size / ranks));
  const std::int64_t share = c.batch_size / ranks;
  c.micro_batch = o.integer("train.micro_batch_size");
  if (c.micro_batch == 0) c.micro_batch = share;
  if (share % c.micro_batch != 0 || c.micro_batch % c.group != 0)
    throw core::UsageError(
        fmt::format("train.micro_batch_size {} must divide a rank's share of {} images and be a multiple of "
                    "train.batch_size_per_gpu {}.",
                    c.micro_batch, share, c.group));
  c.units.accumulate = c.micro_batch < share;

  c.loader.augment = augment_config(o);
  c.loader.augment.type = scalar_type(c.units.precision);  // what the networks would round them to
  c.network.backbone.in_channels = c.loader.augment.pixels.channels;
  c.loader.source_weights = o.get<Numbers>("train.dataset_weights");
  data::MaskConfig& mask = c.loader.mask;
  mask.patches_per_side = c.network.backbone.grid();
  mask.sample_probability = o.number("ibot.mask_sample_probability");
  std::tie(mask.ratio_min, mask.ratio_max) = range(o, "ibot.mask_ratio_min_max");
  if (!c.distilled_from.empty()) {
    c.objective.mask_input = false;
    if (rate > 0) throw core::UsageError("Distillation has no stochastic depth: set student.drop_path_rate to 0.");
  }
  c.loader.seed = c.seed;
  c.loader.global_batch = c.batch_size;
  c.loader.group = c.group;

  const auto epoch = static_cast<double>(o.integer("train.OFFICIAL_EPOCH_LENGTH"));
  const auto iterations = [&](const char* key) { return std::llround(o.number(key) * epoch); };
  c.iterations = iterations("optim.epochs");
  c.warmup_iterations = iterations("optim.warmup_epochs");
  c.freeze_last_layer_iterations = iterations("optim.freeze_last_layer_epochs");
  c.warmup_teacher_temperature_iterations = iterations("teacher.warmup_teacher_temp_epochs");
  if (c.iterations < 1 || c.warmup_iterations > c.iterations)
    throw core::UsageError(
        fmt::format("optim.epochs gives {} iterations, optim.warmup_epochs {}: the run must be longer than "
                    "its warm-up.",
                    c.iterations, c.warmup_iterations));
  c.lr = o.number("optim.base_lr");
  if (o.text("optim.scaling_rule") != "none") c.lr *= std::sqrt(static_cast<double>(c.batch_size) / 1024);
  c.min_lr = o.number("optim.min_lr");
  c.weight_decay = o.number("optim.weight_decay");
  c.weight_decay_end = o.number("optim.weight_decay_end");
  c.momentum = o.number("teacher.momentum_teacher");
  c.final_momentum = o.number("teacher.final_momentum_teacher");
  c.warmup_teacher_temperature = o.number("teacher.warmup_teacher_temp");
  c.teacher_temperature = o.number("teacher.teacher_temp");
  const std::string& products = o.text("train.matmul_precision");
  const bool amx = cpu_has_amx();
  if (products == "medium" && !amx)
    throw core::UsageError("train.matmul_precision is medium, but this CPU has no AMX: say highest, or auto.");
  c.network.fast_products = products != "highest" && amx && c.units.precision == Precision::float32;
  c.checkpoint_period = o.integer("train.checkpoint_period");
  if (c.checkpoint_period == 0) c.checkpoint_period = static_cast<std::int64_t>(3 * epoch);
  c.stop_at = o.integer("train.stop_at");
  c.keep_last = o.integer("train.keep_last");
  c.keep_every = o.integer("train.keep_every");
  c.log_period = o.integer("train.log_period");
  c.max_bad_iterations = o.integer("train.max_bad_iterations");
  return c;
}

ScheduleValues schedule_at(const TrainConfig& c, std::int64_t iteration) {
  const core::CosineSchedule lr{.base = c.lr, .final = c.min_lr, .total = c.iterations, .warmup = c.warmup_iterations};
  core::CosineSchedule last_layer = lr;
  last_layer.freeze = c.freeze_last_layer_iterations;
  const core::CosineSchedule decay{.base = c.weight_decay, .final = c.weight_decay_end, .total = c.iterations};
  const core::CosineSchedule momentum{.base = c.momentum, .final = c.final_momentum, .total = c.iterations};
  const core::LinearSchedule temperature{c.warmup_teacher_temperature, c.teacher_temperature,
                                         c.warmup_teacher_temperature_iterations};
  return {lr.value_at(iteration), decay.value_at(iteration), momentum.value_at(iteration),
          temperature.value_at(iteration), last_layer.value_at(iteration)};
}

}  // namespace allosaur::train
