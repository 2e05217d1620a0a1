#include <string>
#include <vector>

#include "core/error.hpp"
#include "data/pixels.hpp"
#include "testing.hpp"
#include "train/config.hpp"

namespace allosaur {
namespace {

data::AugmentConfig read(const std::vector<std::string>& flags) {
  core::Options options;
  data::declare_pixel_options(options);
  train::declare_options(options);
  options.parse(flags);
  return train::read_config(options, 1).loader.augment;
}

}  // namespace

TEST_CASE("options of the augmentation") {
  const data::AugmentConfig published, plain = read({});
  CHECK(plain.aspect_max == published.aspect_max);
  CHECK(plain.blur_global1 == 0);
  CHECK(plain.blur_global2 == published.blur_global2);
  CHECK(plain.blur_sigma_max == published.blur_sigma_max);
  CHECK(plain.solarize_threshold == published.solarize_threshold);
  CHECK(plain.pixels.mean == published.pixels.mean);
  CHECK((plain.type == at::kFloat));
  CHECK(plain.dct_scaling);
  CHECK(plain.finish);
  CHECK_FALSE(read({"--crops.finish_on_device=true"}).finish);

  const data::AugmentConfig nominal =
      read({"--crops.nominal_blur=true", "--crops.dct_scaling=false", "--data.std=0.5,0.25,0.125",
            "--train.precision=float16", "--crops.aspect_ratio=0.5,2"});
  CHECK(nominal.blur_global1 == 1.0);
  CHECK(nominal.blur_global2 == 0.1);
  CHECK(nominal.blur_local == 0.5);
  CHECK_FALSE(nominal.dct_scaling);
  CHECK(nominal.pixels.deviation == std::vector<double>{0.5, 0.25, 0.125});
  CHECK((nominal.type == at::kHalf));
  CHECK(nominal.aspect_min == 0.5);

  for (const std::vector<std::string>& wrong : {std::vector<std::string>{"--crops.flip=1.5"},
                                                {"--crops.blur=0,0.5"},
                                                {"--crops.blur=0,0.5,2"},
                                                {"--crops.blur=0,0,0", "--crops.nominal_blur=true"},
                                                {"--crops.hue=0.6"},
                                                {"--crops.brightness=-1"},
                                                {"--crops.local_crops_scale=0,0.3"},
                                                {"--crops.local_crops_number=-1"}}) {
    CAPTURE(wrong[0]);
    CHECK_THROWS_WITH_AS(read(wrong), doctest::Contains("crops."), core::UsageError);
  }
}

}  // namespace allosaur
