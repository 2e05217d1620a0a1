#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>

#include <ATen/ATen.h>

#include "data/augment.hpp"
#include "data/loader.hpp"
#include "pictures.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

namespace fs = std::filesystem;

fs::path fixture(const std::string& name) {
  return testing::data_directory() / "data/augment" / (name + ".png");
}
io::Image load(const std::string& name) {
  return io::decode_image(testing::read_file(fixture(name)));
}

/// How far two images are apart: largest difference, and share of values that differ.
struct Distance {
  int largest;
  double share;
};
Distance distance(const io::Image& a, const io::Image& b) {
  if (a.width != b.width || a.height != b.height) return {256, 1};
  int largest = 0;
  std::size_t differing = 0;
  for (std::size_t i = 0; i < a.pixels.size(); ++i) {
    largest = std::max(largest, std::abs(a.pixels[i] - b.pixels[i]));
    differing += a.pixels[i] != b.pixels[i];
  }
  return {largest, static_cast<double>(differing) / static_cast<double>(a.pixels.size())};
}

}  // namespace

TEST_CASE("image operations equal Pillow's and torchvision's") {
  const auto check = [](const char* name, auto operation, double tolerated_share) {
    CAPTURE(name);
    io::Image image = load("source");
    operation(image);
    const Distance d = distance(image, load(name));
    CAPTURE(d.share);
    CHECK(d.largest <= (tolerated_share > 0 ? 1 : 0));
    CHECK(d.share <= tolerated_share);
  };
  check("brightness_0.6", [](io::Image& image) { data::adjust_brightness(image, 0.6); }, 0);
  check("brightness_1.4", [](io::Image& image) { data::adjust_brightness(image, 1.4); }, 0);
  check("contrast_0.6", [](io::Image& image) { data::adjust_contrast(image, 0.6); }, 0);
  check("contrast_1.4", [](io::Image& image) { data::adjust_contrast(image, 1.4); }, 0);
  check("saturation_0.8", [](io::Image& image) { data::adjust_saturation(image, 0.8); }, 0);
  check("saturation_1.2", [](io::Image& image) { data::adjust_saturation(image, 1.2); }, 0);
  check("hue_-0.1", [](io::Image& image) { data::adjust_hue(image, -0.1); }, 0);
  check("hue_0.07", [](io::Image& image) { data::adjust_hue(image, 0.07); }, 0);
  check("grayscale", [](io::Image& image) { data::convert_to_grayscale(image); }, 0);
  check("solarize", [](io::Image& image) { data::solarize(image); }, 0);
  check("flip", [](io::Image& image) { data::flip_horizontally(image); }, 0);
  // torchvision convolves in two dimensions at once: sums next to a half round differently now and then.
  check("blur_0.3", [](io::Image& image) { data::gaussian_blur(image, 0.3); }, 0.001);
  check("blur_2.0", [](io::Image& image) { data::gaussian_blur(image, 2.0); }, 0.001);
}

TEST_CASE("a crop sees nothing outside its box, as torchvision's") {
  const auto rendered = [](const data::CropPlan& plan, int size) {
    at::Tensor out = at::empty({3, size, size}, at::kFloat);
    data::render_crop(load("source"), plan, size, out.data_ptr<float>());
    return out;
  };
  const auto normalized = [](const std::string& name) {
    const io::Image image = load(name);
    at::Tensor out = at::empty({3, image.height, image.width}, at::kFloat);
    data::normalize(image, out.data_ptr<float>());
    return out;
  };
  data::CropPlan plan;
  plan.box = {7, 5, 37, 30};
  CHECK(rendered(plan, 24).equal(normalized("crop_24")));
  plan.box = {20, 11, 11, 9};
  CHECK(rendered(plan, 32).equal(normalized("crop_32")));

  const data::Sample sample{testing::read_file(fixture("source")), -1, "source.png"};
  CHECK(data::evaluation_view(sample, 27, 24).equal(normalized("view_27_24")));
}

TEST_CASE("normalisation uses the ImageNet mean and deviation") {
  io::Image image{1, 1, 3, {255, 0, 51}};
  float out[3];
  data::normalize(image, out);
  CHECK(out[0] == doctest::Approx((1 - 0.485) / 0.229));
  CHECK(out[1] == doctest::Approx(-0.456 / 0.224));
  CHECK(out[2] == doctest::Approx((0.2 - 0.406) / 0.225));
}

TEST_CASE("drawn crops have the published distribution") {
  const data::AugmentConfig config;
  constexpr int kDraws = 20000, kWidth = 400, kHeight = 400;
  struct Expected {
    data::CropKind kind;
    double scale_min, scale_max, blur, solarize;
  };
  for (const Expected& expected :
       {Expected{data::CropKind::global1, 0.32, 1.0, 0.0, 0.0}, Expected{data::CropKind::global2, 0.32, 1.0, 0.9, 0.2},
        Expected{data::CropKind::local, 0.05, 0.32, 0.5, 0.0}}) {
    CAPTURE(static_cast<int>(expected.kind));
    int flips = 0, jitters = 0, greys = 0, blurs = 0, solarized = 0, inside = 0;
    double area_min = 1, area_max = 0, log_aspect = 0, hue_max = 0, brightness_min = 2, brightness_max = 0,
           sigma_sum = 0;
    std::map<data::ColorOp, int> first_op;
    for (int i = 0; i < kDraws; ++i) {
      core::Random random(3, core::Purpose::global_crop, static_cast<std::uint64_t>(i));
      const data::CropPlan plan = data::draw_crop(config, expected.kind, kWidth, kHeight, random);
      const data::CropBox& box = plan.box;
      inside += box.left >= 0 && box.top >= 0 && box.left + box.width <= kWidth && box.top + box.height <= kHeight;
      const double area = double(box.width) * box.height / (double(kWidth) * kHeight);
      area_min = std::min(area_min, area);
      area_max = std::max(area_max, area);
      log_aspect += std::log(double(box.width) / box.height);
      flips += plan.flip;
      greys += plan.grayscale;
      solarized += plan.solarize;
      if (plan.blur_sigma) {
        ++blurs;
        sigma_sum += *plan.blur_sigma;
      }
      if (plan.jitter) {
        ++jitters;
        ++first_op[plan.jitter->order[0]];
        hue_max = std::max(hue_max, std::abs(plan.jitter->hue));
        brightness_min = std::min(brightness_min, plan.jitter->brightness);
        brightness_max = std::max(brightness_max, plan.jitter->brightness);
      }
    }
    const auto share = [](int count) { return doctest::Approx(double(count) / kDraws).epsilon(0.03); };
    CHECK(inside == kDraws);
    CHECK(area_min == doctest::Approx(expected.scale_min).epsilon(0.02));
    CHECK(area_max <= expected.scale_max + 0.01);
    CHECK(area_max >= expected.scale_max - 0.05);
    CHECK(std::abs(log_aspect / kDraws) < 0.02);
    CHECK(0.5 == share(flips));
    CHECK(0.8 == share(jitters));
    CHECK(0.2 == share(greys));
    CHECK(expected.blur == share(blurs));
    CHECK(expected.solarize == doctest::Approx(double(solarized) / kDraws).epsilon(0.05));
    for (const auto& [op, count] : first_op) CHECK(0.25 == doctest::Approx(double(count) / jitters).epsilon(0.05));
    CHECK(first_op.size() == 4);
    CHECK(hue_max == doctest::Approx(0.1).epsilon(0.01));
    CHECK(brightness_min == doctest::Approx(0.6).epsilon(0.01));
    CHECK(brightness_max == doctest::Approx(1.4).epsilon(0.01));
    if (blurs > 0) CHECK(sigma_sum / blurs == doctest::Approx(1.05).epsilon(0.03));
  }
}

TEST_CASE("crops of extreme images") {
  core::Random random(1, core::Purpose::global_crop, 0);
  const auto crop = [&](int width, int height) { return data::random_resized_crop(random, width, height, 0.32, 1.0); };
  const data::CropBox wide = crop(1000, 10);
  CHECK(wide.width == 13);
  CHECK(wide.height == 10);
  CHECK(wide.left == 493);
  const data::CropBox tall = crop(9, 900);
  CHECK(tall.width == 9);
  CHECK(tall.height == 12);
  const data::CropBox pixel = crop(1, 1);
  CHECK(pixel.width == 1);
  CHECK(pixel.height == 1);

  const data::AugmentConfig config{.global_crops_size = 16, .local_crops_size = 3, .local_crops_number = 2};
  at::Tensor globals = at::empty({2, 3, 16, 16}), locals = at::empty({2, 3, 3, 3});
  float* const local[] = {locals[0].data_ptr<float>(), locals[1].data_ptr<float>()};
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 300}, {300, 2}}) {
    for (int position = 0; position < 20; ++position) {
      data::augment(config, testing::picture(1, width, height), 0, position,
                    {globals[0].data_ptr<float>(), globals[1].data_ptr<float>()}, local);
    }
    CHECK(globals.isfinite().all().item<bool>());
    CHECK(locals.isfinite().all().item<bool>());
  }
  const data::Sample sliver{io::encode_png(testing::picture(1, 20000, 1)), -1, ""};
  CHECK((data::evaluation_view(sliver, 256, 224).sizes() == at::IntArrayRef{3, 224, 224}));
}

TEST_CASE("no two crops of a sample, and no two samples, are augmented alike") {
  const data::AugmentConfig config{.global_crops_size = 8, .local_crops_size = 8, .local_crops_number = 2};
  at::Tensor crops = at::empty({8, 3, 8, 8});
  for (int position = 0; position < 2; ++position) {
    const auto at = [&](int crop) { return crops[position * 4 + crop].data_ptr<float>(); };
    float* const locals[] = {at(2), at(3)};
    data::augment(config, testing::picture(5, 60, 60), 11, position, {at(0), at(1)}, locals);
  }
  for (int a = 0; a < 8; ++a) {
    for (int b = 0; b < a; ++b) CHECK_FALSE(crops[a].equal(crops[b]));
  }
}

}  // namespace allosaur
