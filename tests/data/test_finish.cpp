#include <array>
#include <cstdint>
#include <cstring>
#include <set>
#include <span>
#include <vector>

#include <ATen/ATen.h>

#include "data/augment.hpp"
#include "kernels/emulation/executors.hpp"
#include "testing.hpp"

// Crops that kernels::FinishCrops finishes are those that data::Augmenter finishes, bit for bit, wherever they run.

namespace allosaur {
namespace {

kernels::Type kernel_type(at::ScalarType type) {
  return type == at::kFloat ? kernels::Type::f32 : type == at::kHalf ? kernels::Type::f16 : kernels::Type::bf16;
}

/// values uint8 [n, C, H, W], finished; on the host.
at::Tensor finished(const data::AugmentConfig& config, const testing::Executor& run, const at::Tensor& values,
                    std::span<const kernels::CropRecipe> recipes) {
  const at::Device device = run.gpu ? at::Device(at::kCUDA, 0) : at::kCPU;
  const auto floats = [&](const std::vector<double>& numbers) { return at::tensor(numbers, at::kFloat).to(device); };
  const at::Tensor mean = floats(config.pixels.mean), deviation = floats(config.pixels.deviation);
  const at::Tensor work = values.to(device, at::kByte, /*non_blocking=*/false, /*copy=*/true);
  const at::Tensor workspace = at::empty({work.size(0), work.size(2), work.size(3)}, mean.options());
  at::Tensor bytes = at::empty({static_cast<std::int64_t>(recipes.size_bytes())}, at::kByte);
  if (!recipes.empty()) std::memcpy(bytes.data_ptr(), recipes.data(), bytes.nbytes());
  bytes = bytes.to(device);
  const at::Tensor out = at::full(work.sizes(), -100, work.options().dtype(config.type));
  run(kernels::FinishCrops{.crops = work.size(0),
                           .channels = work.size(1),
                           .height = work.size(2),
                           .width = work.size(3),
                           .values = work.data_ptr<std::uint8_t>(),
                           .recipes = static_cast<const kernels::CropRecipe*>(bytes.data_ptr()),
                           .mean = mean.data_ptr<float>(),
                           .deviation = deviation.data_ptr<float>(),
                           .workspace = workspace.data_ptr<float>(),
                           .type = kernel_type(config.type),
                           .output = out.data_ptr()});
  return out.cpu();
}

/// Values that reach both ends of the range, in patches, so that blur and contrast have something to do.
io::Image noise(int width, int height, int channels) {
  io::Image image{width, height, channels, {}};
  core::Random random(3, core::Purpose::demo, static_cast<std::uint64_t>(channels));
  for (int i = 0; i < width * height * channels; ++i)
    image.pixels.push_back(static_cast<std::uint8_t>(random.below(8) == 0 ? 255 * random.below(2) : random.below(256)));
  return image;
}

data::AugmentConfig config_of(int channels, at::ScalarType type) {
  data::AugmentConfig config;
  config.type = type;
  config.pixels = {.channels = channels, .mean = {}, .deviation = {}};
  for (int c = 0; c < channels; ++c) {
    config.pixels.mean.push_back(0.3 + 0.07 * c);
    config.pixels.deviation.push_back(0.2 + 0.01 * c);
  }
  config.brightness = config.contrast = config.saturation = 0.9;
  config.hue = 0.5;
  config.blur_global1 = 0.3;
  config.blur_sigma_max = 3;
  config.solarize_global2 = 0.5;
  return config;
}

}  // namespace

TEST_CASE("crops finished by the kernel are those that the augmenter finishes") {
  constexpr int kWidth = 61, kHeight = 47;
  std::int64_t cases = 0;
  for (const int channels : {1, 3, 5}) {
    const io::Image image = noise(kWidth, kHeight, channels);
    for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
      for (const int size : {1, 2, 7, 24, 45}) {
        CAPTURE(channels);
        CAPTURE(c10::toString(type));
        CAPTURE(size);
        data::AugmentConfig config = config_of(channels, type);
        std::vector<data::CropPlan> plans, drawn;
        for (std::uint64_t seed = 0; seed < 3; ++seed) {
          for (std::int64_t position = 0; position < 8; ++position) {
            data::draw_crops(config, kWidth, kHeight, seed, position, drawn);
            plans.insert(plans.end(), drawn.begin(), drawn.end());
          }
        }
        const auto n = static_cast<std::int64_t>(plans.size());
        const at::Tensor wanted = at::empty({n, channels, size, size}, type);
        const at::Tensor values = at::empty({n, channels, size, size}, at::kByte);
        std::vector<kernels::CropRecipe> recipes;
        data::Augmenter whole(config);
        config.finish = false;
        data::Augmenter part(config);
        for (std::int64_t i = 0; i < n; ++i) {
          const data::CropPlan& plan = plans[static_cast<std::size_t>(i)];
          whole.render(image, plan, 1, size, wanted[i].data_ptr());
          part.render(image, plan, 1, size, values[i].data_ptr());
          recipes.push_back(data::recipe_of(config, plan));
        }
        ++cases;
        for (const testing::Executor& run : testing::executors()) {
          CAPTURE(run.name);
          const std::int64_t some = run.emulated ? 12 : n, first = cases * some % (n + 1 - some);
          CHECK(finished(config, run, values.narrow(0, first, some),
                         std::span(recipes).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(some)))
                    .equal(wanted.narrow(0, first, some)));
        }
      }
    }
  }
}

TEST_CASE("every operation and order of jitter was among the plans") {
  const data::AugmentConfig config = config_of(3, at::kFloat);
  std::set<std::array<data::ColorOp, 4>> orders;
  int unjittered = 0, grey = 0, blurred = 0, solarized = 0;
  std::vector<data::CropPlan> drawn;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    for (std::int64_t position = 0; position < 8; ++position) {
      data::draw_crops(config, 61, 47, seed, position, drawn);
      for (const data::CropPlan& plan : drawn) {
        unjittered += !plan.jitter;
        if (plan.jitter) orders.insert(plan.jitter->order);
        grey += plan.grayscale;
        blurred += plan.blur_sigma.has_value();
        solarized += plan.solarize;
      }
    }
  }
  CHECK(orders.size() == 24);
  for (const int count : {unjittered, grey, blurred, solarized}) CHECK(count > 3);
}

TEST_CASE("the kernel finishes crops that are no squares, and none at all") {
  const data::AugmentConfig config = config_of(3, at::kFloat);
  for (const auto& [width, height] : {std::pair{37, 5}, {3, 40}, {1, 9}}) {
    const io::Image image = noise(width, height, 3);
    data::Crop crop;
    crop.resize(3, width, height);
    for (std::size_t i = 0; i < image.pixels.size(); ++i) crop.values[i % 3 * crop.pixels() + i / 3] = image.pixels[i];
    const at::Tensor values = at::empty({1, 3, height, width}, at::kByte);
    std::memcpy(values.data_ptr(), crop.values.data(), crop.values.size());
    data::CropPlan plan;
    plan.blur_sigma = 1.3;
    plan.solarize = true;
    data::gaussian_blur(crop, *plan.blur_sigma);
    data::solarize(crop, config.solarize_threshold);
    const at::Tensor wanted = at::empty({1, 3, height, width});
    data::Normalization(config).write(crop, wanted.data_ptr());
    const kernels::CropRecipe recipe = data::recipe_of(config, plan);
    for (const testing::Executor& run : testing::executors()) {
      CAPTURE(run.name);
      CHECK(finished(config, run, values, {&recipe, 1}).equal(wanted));
      CHECK(finished(config, run, at::empty({0, 3, 8, 8}, at::kByte), {}).numel() == 0);
    }
  }
}

}  // namespace allosaur
