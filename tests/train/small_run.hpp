#pragma once
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <vector>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/options.hpp"
#include "core/random.hpp"
#include "data/pixels.hpp"
#include "io/image.hpp"
#include "testing.hpp"
#include "train/config.hpp"

namespace allosaur::testing {

inline void write_file(const std::filesystem::path& file, const std::vector<std::byte>& bytes) {
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

/// Collective. A few noisy PNG images, which rank 0 writes.
inline void write_images(const std::filesystem::path& folder, int count) {
  comm::coordinate(world(), [&] {
    if (world().rank() != 0) return;
    std::filesystem::create_directories(folder);
    for (int i = 0; i < count; ++i) {
      core::Random random(5, core::Purpose::demo, static_cast<std::uint64_t>(i));
      io::Image image{.width = 24, .height = 20, .channels = 3, .pixels = std::vector<std::uint8_t>(24 * 20 * 3)};
      for (std::uint8_t& pixel : image.pixels) pixel = static_cast<std::uint8_t>(random.below(256));
      write_file(folder / fmt::format("{:03}.png", i), io::encode_png(image));
    }
  });
}

/// Of a run of 10 iterations of 8 images that takes less than a second.
inline core::Options small_options() {
  core::Options options;
  data::declare_pixel_options(options);
  train::declare_options(options);
  options.parse({"--student.arch=vit_tiny",
                 "--student.embed_dim=24",
                 "--student.depth=2",
                 "--student.num_heads=3",
                 "--student.patch_size=4",
                 "--student.drop_path_rate=0.3",
                 "--crops.global_crops_size=16",
                 "--crops.local_crops_size=8",
                 "--crops.local_crops_number=3",
                 "--dino.head_n_prototypes=32",
                 "--dino.head_hidden_dim=16",
                 "--dino.head_bottleneck_dim=8",
                 "--ibot.head_n_prototypes=32",
                 "--ibot.head_hidden_dim=16",
                 "--ibot.head_bottleneck_dim=8",
                 "--train.batch_size=8",
                 "--train.batch_size_per_gpu=4",
                 "--train.OFFICIAL_EPOCH_LENGTH=10",
                 "--optim.epochs=1",
                 "--optim.warmup_epochs=0.2",
                 "--optim.freeze_last_layer_epochs=0.1",
                 "--train.checkpoint_period=5",
                 "--optim.base_lr=0.02",
                 "--train.keep_last=2"});
  return options;
}

}  // namespace allosaur::testing
