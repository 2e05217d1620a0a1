#include "data/pixels.hpp"

#include <span>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "core/error.hpp"
#include "core/random.hpp"
#include "data/loader.hpp"
#include "testing.hpp"
#include "tiff.hpp"

namespace allosaur {
namespace {

constexpr int kWidth = 33, kHeight = 27, kChannels = 5;

data::PixelConfig read(const std::vector<std::string>& flags) {
  core::Options options;
  data::declare_pixel_options(options);
  options.parse(flags);
  return data::read_pixel_config(options);
}

std::vector<std::uint16_t> noise(std::size_t count, std::int64_t below) {
  core::Random random(3, core::Purpose::demo, 0);
  std::vector<std::uint16_t> samples(count);
  for (std::uint16_t& sample : samples) sample = static_cast<std::uint16_t>(random.below(below));
  return samples;
}

/// The crops of a file, [channels, size, size] each, without what mixes its channels.
std::vector<at::Tensor> augmented(const std::vector<std::byte>& bytes, const data::PixelConfig& pixels) {
  const data::AugmentConfig config{.pixels = pixels,
                                   .global_crops_size = 16,
                                   .local_crops_size = 8,
                                   .local_crops_number = 3,
                                   .jitter = 0,
                                   .grayscale = 0};
  std::vector<at::Tensor> crops;
  std::vector<void*> places;
  for (const int size : {16, 16, 8, 8, 8})
    places.push_back(crops.emplace_back(at::empty({pixels.channels, size, size})).data_ptr());
  data::Augmenter(config).augment(bytes, 1, 2, places);
  return crops;
}

at::Tensor view(const std::vector<std::byte>& bytes, const data::PixelConfig& pixels) {
  return data::evaluation_view({bytes, -1, "image"}, pixels, 20, 16);
}

/// One value a channel.
data::PixelConfig grey(double mean, double deviation) {
  return {.channels = 1, .mean = {mean}, .deviation = {deviation}};
}

}  // namespace

TEST_CASE("options of pixels") {
  const data::PixelConfig plain = read({});
  CHECK(plain.channels == 3);
  CHECK(plain.range16 == io::DecodeOptions{}.range16);
  CHECK(plain.mean == data::PixelConfig{}.mean);
  CHECK(plain.deviation == data::PixelConfig{}.deviation);
  CHECK(plain.max_pixels == data::PixelConfig{}.max_pixels);
  CHECK(data::decode_options(read({"--data.max_pixels=99"})).max_pixels == 99);
  CHECK(read({"--data.std=1,2,3"}).deviation == std::vector<double>{1, 2, 3});

  const data::PixelConfig two = read({"--data.channels=2", "--data.range16=10,4095", "--data.mean=0.1,0.2"});
  CHECK(two.channels == 2);
  CHECK(two.range16 == std::array<int, 2>{10, 4095});
  CHECK(two.mean == std::vector<double>{0.1, 0.2});
  CHECK(two.deviation == std::vector<double>{0.25, 0.25});
  CHECK(read({"--data.channels=64"}).mean == std::vector<double>(64, 0.5));

  struct Wrong {
    std::vector<std::string> flags;
    const char* reason;
  };
  for (const Wrong& wrong : {Wrong{{"--data.channels=0"}, "data.channels = 0 must be at least 1"},
                             {{"--data.channels=65"}, "data.channels = 65 must be at least 1 and at most 64"},
                             {{"--data.mean=0.5"}, "data.mean has 1 values, but images of data.channels = 3"},
                             {{"--data.channels=1", "--data.std=1,1"}, "data.std has 2 values"},
                             {{"--data.std=1,0,1"}, "data.std is 1,0,1; each value must be above 0"},
                             {{"--data.range16=5"}, "data.range16 = 5 must have 2 values"},
                             {{"--data.range16=7,7"}, "data.range16 is 7,7"},
                             {{"--data.range16=-1,7"}, "data.range16 is -1,7"},
                             {{"--data.range16=0,65536"}, "data.range16 is 0,65536"}}) {
    CAPTURE(wrong.reason);
    CHECK_THROWS_WITH_AS(read(wrong.flags), doctest::Contains(wrong.reason), core::UsageError);
  }
}

TEST_CASE("16-bit files are spread over their range in crops and views") {
  const std::vector<std::uint16_t> samples = noise(kWidth * kHeight, 4096);
  io::Image image{kWidth, kHeight, 1, {}};
  for (const std::uint16_t sample : samples)
    image.pixels.push_back(static_cast<std::uint8_t>((sample * 255 + 2047) / 4095));
  const std::vector<std::byte> narrow = io::encode_png(image);
  data::PixelConfig pixels = grey(0.5, 0.25);
  const std::vector<at::Tensor> crops = augmented(narrow, pixels);
  const at::Tensor whole = view(narrow, pixels);
  pixels.range16 = {0, 4095};
  for (const std::vector<std::byte>& wide :
       {io::encode_grey16_png(samples, kWidth, kHeight), testing::tiff16(kWidth, kHeight, 1, samples)}) {
    CHECK(view(wide, pixels).equal(whole));
    const std::vector<at::Tensor> same = augmented(wide, pixels);
    for (std::size_t c = 0; c < crops.size(); ++c) CHECK(same[c].equal(crops[c]));
  }
}

TEST_CASE("each of five channels is cropped, resized and normalised as it would be alone") {
  const std::vector<std::uint16_t> samples = noise(kWidth * kHeight * kChannels, 65536);
  const std::vector<std::byte> file = testing::tiff16(kWidth, kHeight, kChannels, samples);
  const data::PixelConfig pixels{
      .channels = kChannels, .mean = {0.1, 0.2, 0.3, 0.4, 0.5}, .deviation = {0.5, 0.4, 0.3, 0.2, 0.1}};
  const std::vector<at::Tensor> crops = augmented(file, pixels);
  const at::Tensor whole = view(file, pixels);
  CHECK((whole.sizes() == at::IntArrayRef{kChannels, 16, 16}));
  for (std::size_t channel = 0; channel < kChannels; ++channel) {
    std::vector<std::uint16_t> of_channel;
    for (std::size_t i = channel; i < samples.size(); i += kChannels) of_channel.push_back(samples[i]);
    const std::vector<std::byte> alone = io::encode_grey16_png(of_channel, kWidth, kHeight);
    const data::PixelConfig one = grey(pixels.mean[channel], pixels.deviation[channel]);
    const auto at = static_cast<std::int64_t>(channel);
    CHECK(view(alone, one)[0].equal(whole[at]));
    const std::vector<at::Tensor> expected = augmented(alone, one);
    for (std::size_t c = 0; c < crops.size(); ++c) CHECK(expected[c][0].equal(crops[c][at]));
  }
  CHECK_THROWS_WITH_AS(view(file, {}), doctest::Contains("5 samples a pixel of no known colour, but 3 channels"),
                       core::InputError);
}

}  // namespace allosaur
