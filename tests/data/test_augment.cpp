#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "core/error.hpp"
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

data::Crop planes(const io::Image& image) {
  data::Crop crop;
  crop.resize(image.channels, image.width, image.height);
  const auto channels = static_cast<std::size_t>(image.channels);
  for (std::size_t i = 0; i < image.pixels.size(); ++i)
    crop.values[i % channels * crop.pixels() + i / channels] = image.pixels[i];
  return crop;
}
data::Crop load(const std::string& name) {
  return planes(io::decode_image(testing::read_file(fixture(name))));
}

/// How far two crops are apart: largest difference, share of values that differ, mean difference.
struct Distance {
  int largest;
  double share, mean;
};
Distance distance(const data::Crop& a, const data::Crop& b) {
  if (a.width != b.width || a.height != b.height || a.channels != b.channels) return {256, 1, 256};
  int largest = 0;
  double differing = 0, sum = 0;
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    const int difference = std::abs(a.values[i] - b.values[i]);
    largest = std::max(largest, difference);
    differing += difference > 0;
    sum += difference;
  }
  const auto n = static_cast<double>(a.values.size());
  return {largest, differing / n, sum / n};
}

/// [channels, size, size], as an Augmenter renders it.
at::Tensor rendered(const data::AugmentConfig& config, const io::Image& image, const data::CropPlan& plan, int size,
                    int denominator = 1) {
  at::Tensor out = at::empty({config.pixels.channels, size, size}, config.written_type());
  data::Augmenter(config).render(image, plan, denominator, size, out.data_ptr());
  return out;
}

/// All crops of an image, one after another.
std::vector<at::Tensor> augmented(const data::AugmentConfig& config, const std::vector<std::byte>& bytes,
                                  std::int64_t position) {
  std::vector<at::Tensor> crops;
  std::vector<void*> places;
  for (int c = 0; c < 2 + config.local_crops_number; ++c) {
    const int size = c < 2 ? config.global_crops_size : config.local_crops_size;
    crops.push_back(at::empty({config.pixels.channels, size, size}, config.written_type()));
    places.push_back(crops.back().data_ptr());
  }
  data::Augmenter(config).augment(bytes, 11, position, places);
  return crops;
}

/// A smooth picture with edges, as photographs are: blobs of colour on gradients.
io::Image scene(int width, int height) {
  io::Image image{width, height, 3, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const double u = double(x) / width, v = double(y) / height;
      const bool inside = std::fmod(u * 5, 1) > 0.5 && std::fmod(v * 4, 1) > 0.4;
      image.pixels.push_back(static_cast<std::uint8_t>(inside ? 200 : 255 * u));
      image.pixels.push_back(static_cast<std::uint8_t>(127 + 100 * std::sin(9 * u + 5 * v)));
      image.pixels.push_back(static_cast<std::uint8_t>(inside ? 40 : 255 * v));
    }
  }
  return image;
}

/// Pillow's conversion to 8-bit HSV and back with the hue turned, as it is written there: partly in double precision.
std::array<int, 3> turned_by_pillow(int r, int g, int b, int turn) {
  const int value = std::max({r, g, b}), chroma = value - std::min({r, g, b});
  if (chroma == 0) return {r, g, b};
  const auto range = static_cast<float>(chroma);
  const auto to = [&](int v) { return static_cast<float>(value - v) / range; };
  const auto sixth = static_cast<float>(r == value   ? to(b) - to(g)
                                        : g == value ? 2.0 + to(r) - to(b)
                                                     : 4.0 + to(g) - to(r));
  const auto circle = static_cast<float>(std::fmod(sixth / 6.0 + 1.0, 1.0));
  const int hue = (std::min(255, static_cast<int>(circle * 255.0)) + turn) & 255;
  const int saturation = static_cast<int>(range / static_cast<float>(value) * 255.0);
  const double place = hue * 6.0 / 255.0;
  const int sector = static_cast<int>(std::floor(place));
  const auto fraction = static_cast<float>(place - sector);
  const float s = static_cast<float>(saturation) / 255.0F;
  const int p = static_cast<int>(std::round(value * (1.0 - s)));
  const int q = static_cast<int>(std::round(value * (1.0 - static_cast<double>(s * fraction))));
  const int t = static_cast<int>(std::round(value * (1.0 - s * (1.0 - fraction))));
  switch (sector % 6) {
    case 0:
      return {value, t, p};
    case 1:
      return {q, value, p};
    case 2:
      return {p, value, t};
    case 3:
      return {p, q, value};
    case 4:
      return {t, p, value};
    default:
      return {value, p, q};
  }
}

}  // namespace

TEST_CASE("image operations equal Pillow's and torchvision's") {
  const auto check = [](const char* name, auto operation, double tolerated_share) {
    CAPTURE(name);
    data::Crop crop = load("source");
    operation(crop);
    const Distance d = distance(crop, load(name));
    CAPTURE(d.share);
    CHECK(d.largest <= (tolerated_share > 0 ? 1 : 0));
    CHECK(d.share <= tolerated_share);
  };
  check("brightness_0.6", [](data::Crop& crop) { data::adjust_brightness(crop, 0.6); }, 0);
  check("brightness_1.4", [](data::Crop& crop) { data::adjust_brightness(crop, 1.4); }, 0);
  check("contrast_0.6", [](data::Crop& crop) { data::adjust_contrast(crop, 0.6); }, 0);
  check("contrast_1.4", [](data::Crop& crop) { data::adjust_contrast(crop, 1.4); }, 0);
  check("saturation_0.8", [](data::Crop& crop) { data::adjust_saturation(crop, 0.8); }, 0);
  check("saturation_1.2", [](data::Crop& crop) { data::adjust_saturation(crop, 1.2); }, 0);
  check("hue_-0.1", [](data::Crop& crop) { data::adjust_hue(crop, -0.1); }, 0);
  check("hue_0.07", [](data::Crop& crop) { data::adjust_hue(crop, 0.07); }, 0);
  check("grayscale", [](data::Crop& crop) { data::convert_to_grayscale(crop); }, 0);
  check("solarize", [](data::Crop& crop) { data::solarize(crop, 128); }, 0);
  // torchvision convolves in two dimensions at once: sums next to a half round differently now and then.
  check("blur_0.3", [](data::Crop& crop) { data::gaussian_blur(crop, 0.3); }, 0.001);
  check("blur_2.0", [](data::Crop& crop) { data::gaussian_blur(crop, 2.0); }, 0.001);

  io::Image image = io::decode_image(testing::read_file(fixture("source")));
  data::gaussian_blur(image, 2.0);
  CHECK(distance(planes(image), load("blur_2.0")).share <= 0.001);
}

TEST_CASE("every colour is turned as Pillow turns it") {
  data::Crop crop;
  crop.resize(3, 256, 256);
  constexpr int kTurn = 17;
  std::int64_t wrong = 0;
  for (int r = 0; r < 256; ++r) {
    for (std::size_t i = 0; i < crop.pixels(); ++i) {
      crop.plane(0)[i] = static_cast<std::uint8_t>(r);
      crop.plane(1)[i] = static_cast<std::uint8_t>(i / 256);
      crop.plane(2)[i] = static_cast<std::uint8_t>(i % 256);
    }
    data::adjust_hue(crop, kTurn / 255.0 + 1e-9);
    for (std::size_t i = 0; i < crop.pixels(); ++i) {
      const auto wanted = turned_by_pillow(r, static_cast<int>(i / 256), static_cast<int>(i % 256), kTurn);
      for (int c = 0; c < 3; ++c) wrong += crop.plane(c)[i] != wanted[static_cast<std::size_t>(c)];
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("a crop is flipped, jittered, greyed, blurred and solarised in the published order") {
  using data::ColorOp;
  data::AugmentConfig config;
  config.pixels.mean = {0, 0, 0};
  config.pixels.deviation = {1, 1, 1};
  const io::Image source = io::decode_image(testing::read_file(fixture("source")));
  data::CropPlan plan;
  plan.box = {7, 5, 37, 30};
  plan.jitter = data::ColorJitter{{ColorOp::hue, ColorOp::contrast, ColorOp::brightness, ColorOp::saturation},
                                  /*brightness=*/1.3,
                                  /*contrast=*/0.7,
                                  /*saturation=*/1.2,
                                  /*hue=*/0.07};
  plan.blur_sigma = 0.8;
  const auto differing = [&](const char* name) {  // share of values; none by more than what blur may round otherwise
    const data::Crop wanted = load(name);
    const at::Tensor values = rendered(config, source, plan, 24).mul(255).round().to(at::kByte).contiguous();
    data::Crop crop;
    crop.resize(3, 24, 24);
    std::copy_n(values.const_data_ptr<std::uint8_t>(), crop.values.size(), crop.values.begin());
    const Distance d = distance(crop, wanted);
    CHECK(d.largest <= 1);
    return d.share;
  };
  plan.flip = plan.solarize = true;
  CHECK(differing("order_colour") < 0.01);
  plan.flip = plan.solarize = false;
  plan.grayscale = true;
  plan.jitter->order = {ColorOp::saturation, ColorOp::brightness, ColorOp::hue, ColorOp::contrast};
  CHECK(differing("order_grey") < 0.01);
}

TEST_CASE("a crop sees nothing outside its box, as torchvision's") {
  const io::Image source = io::decode_image(testing::read_file(fixture("source")));
  const data::AugmentConfig config;
  const data::Normalization normalization(config);
  const auto normalized = [&](const std::string& name) {
    const data::Crop crop = load(name);
    at::Tensor out = at::empty({3, crop.height, crop.width}, at::kFloat);
    normalization.write(crop, out.data_ptr());
    return out;
  };
  data::CropPlan plan;
  plan.box = {7, 5, 37, 30};
  CHECK(rendered(config, source, plan, 24).equal(normalized("crop_24")));
  plan.flip = true;
  CHECK(rendered(config, source, plan, 24).equal(normalized("crop_24").flip(2)));
  plan.flip = false;
  plan.box = {20, 11, 11, 9};
  CHECK(rendered(config, source, plan, 32).equal(normalized("crop_32")));

  data::Crop mirrored;
  mirrored.resize(3, source.width, source.height);
  io::Resizer().planar(source, {0, 0, double(source.width), double(source.height)}, source.width, source.height, true,
                       mirrored.values.data());
  CHECK(distance(mirrored, load("flip")).largest == 0);

  const data::Sample sample{testing::read_file(fixture("source")), -1, "source.png"};
  CHECK(data::evaluation_view(sample, {}, 27, 24).equal(normalized("view_27_24")));
}

TEST_CASE("normalisation uses a mean and deviation a channel") {
  const data::Crop crop{3, 1, 1, {255, 0, 51}};
  float out[3];
  data::Normalization(data::AugmentConfig{}).write(crop, out);
  CHECK(out[0] == doctest::Approx((1 - 0.485) / 0.229));
  CHECK(out[1] == doctest::Approx(-0.456 / 0.224));
  CHECK(out[2] == doctest::Approx((0.2 - 0.406) / 0.225));

  data::AugmentConfig config{.pixels = {.channels = 2}};
  CHECK_THROWS_AS(data::Normalization{config}, core::UsageError);
  config.pixels.mean = {0.5, 0.25};
  config.pixels.deviation = {0.5, 0};
  CHECK_THROWS_AS(data::Normalization{config}, core::UsageError);
  config.pixels.deviation = {0.5, 0.1};
  data::Normalization(config).write({2, 1, 1, {255, 0}}, out);
  CHECK(out[0] == doctest::Approx(1));
  CHECK(out[1] == doctest::Approx(-2.5));
}

TEST_CASE("crops of every type hold the same values") {
  const std::vector<std::byte> bytes = testing::read_file(fixture("source"));
  data::AugmentConfig config{.global_crops_size = 24, .local_crops_size = 11, .local_crops_number = 2};
  const std::vector<at::Tensor> floats = augmented(config, bytes, 3);
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf}) {
    config.type = type;
    const std::vector<at::Tensor> crops = augmented(config, bytes, 3);
    for (std::size_t c = 0; c < crops.size(); ++c) CHECK(crops[c].equal(floats[c].to(type)));
  }
}

TEST_CASE("images of other channels: drawn as RGB, colours left out") {
  io::Image image{40, 30, 4, {}};
  core::Random random(5, core::Purpose::demo, 0);
  for (int i = 0; i < 40 * 30 * 4; ++i) image.pixels.push_back(static_cast<std::uint8_t>(random.below(256)));
  const data::AugmentConfig config{.pixels = {.channels = 4, .mean = {0, 0.1, 0.2, 0.3}, .deviation = {1, 1, 1, 1}}};
  data::CropPlan plan;
  plan.box = {3, 2, 30, 25};
  const at::Tensor plain = rendered(config, image, plan, 16);
  plan.jitter = data::ColorJitter{
      .order = {data::ColorOp::hue, data::ColorOp::saturation, data::ColorOp::brightness, data::ColorOp::contrast},
      .saturation = 1.2,
      .hue = 0.1};
  plan.grayscale = true;
  CHECK(rendered(config, image, plan, 16).equal(plain));

  data::Crop crop{2, 2, 1, {10, 20, 30, 140}};  // mean 50
  data::adjust_contrast(crop, 0.5);
  CHECK(crop.values == std::vector<std::uint8_t>{30, 35, 40, 95});

  // A grey image is its own luma: one channel of it is what three equal ones are.
  io::Image grey{20, 20, 1, {}}, rgb{20, 20, 3, {}};
  for (int i = 0; i < 400; ++i) {
    grey.pixels.push_back(static_cast<std::uint8_t>(random.below(256)));
    rgb.pixels.insert(rgb.pixels.end(), 3, grey.pixels.back());
  }
  const data::AugmentConfig three{.pixels = {.mean = {0.5, 0.5, 0.5}, .deviation = {0.2, 0.2, 0.2}}};
  const data::AugmentConfig one{.pixels = {.channels = 1, .mean = {0.5}, .deviation = {0.2}}};
  std::vector<data::CropPlan> plans, again;
  data::draw_crops(three, 20, 20, 4, 9, plans);
  for (const data::CropPlan& drawn : plans)
    CHECK(rendered(one, grey, drawn, 12).equal(rendered(three, rgb, drawn, 12).slice(0, 0, 1)));
}

TEST_CASE("a large JPEG is decoded at a fraction of its size, for the same crops") {
  const std::vector<std::byte> bytes = io::encode_jpeg(scene(1203, 901), 92);
  data::AugmentConfig config{.global_crops_size = 64, .local_crops_size = 24, .local_crops_number = 4, .finish = false};
  std::vector<data::CropPlan> plans;
  data::draw_crops(config, 1203, 901, 11, 0, plans);
  CHECK(decode_denominator(config, plans) == 8);
  for (auto& [wanted, side] : {std::pair{8, 512}, {4, 511}, {4, 256}, {2, 255}, {1, 127}, {1, 20}}) {
    plans[1].box = {0, 0, 900, side};
    CHECK(decode_denominator(config, plans) == wanted);
  }
  plans[3].box = {0, 0, 47, 200};  // a local crop that would be enlarged
  plans[1].box = {0, 0, 900, 900};
  CHECK(decode_denominator(config, plans) == 1);

  for (int position = 0; position < 10; ++position) {
    config.dct_scaling = true;
    const std::vector<at::Tensor> scaled = augmented(config, bytes, position);
    config.dct_scaling = false;
    const std::vector<at::Tensor> whole = augmented(config, bytes, position);
    for (std::size_t c = 0; c < scaled.size(); ++c) {
      const at::Tensor difference = (scaled[c].to(at::kFloat) - whole[c].to(at::kFloat)).abs();
      CHECK(difference.mean().item<double>() > 0);  // something else was decoded
      CHECK(difference.mean().item<double>() < 1.5);
      CHECK(difference.max().item<double>() < 64);  // at edges, where the filters differ
    }
  }
}

TEST_CASE("crops of extreme images") {
  core::Random random(1, core::Purpose::global_crop, 0);
  const auto crop = [&](int width, int height) {
    return data::random_resized_crop({}, data::CropKind::global1, width, height, random);
  };
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
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 300}, {300, 2}}) {
    const std::vector<std::byte> bytes = io::encode_jpeg(testing::picture(1, width, height), 90);
    for (int position = 0; position < 20; ++position) {
      for (const at::Tensor& result : augmented(config, bytes, position)) CHECK(result.isfinite().all().item<bool>());
    }
  }
  const data::Sample sliver{io::encode_png(testing::picture(1, 20000, 1)), -1, ""};
  CHECK((data::evaluation_view(sliver, {}, 256, 224).sizes() == at::IntArrayRef{3, 224, 224}));
}

TEST_CASE("no two crops of a sample, and no two samples, are augmented alike") {
  const data::AugmentConfig config{.global_crops_size = 8, .local_crops_size = 8, .local_crops_number = 2};
  const std::vector<std::byte> bytes = io::encode_png(testing::picture(5, 60, 60));
  std::vector<at::Tensor> crops;
  for (int position = 0; position < 2; ++position) {
    for (const at::Tensor& crop : augmented(config, bytes, position)) crops.push_back(crop);
  }
  for (std::size_t a = 0; a < crops.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) CHECK_FALSE(crops[a].equal(crops[b]));
  }
}

}  // namespace allosaur
