/// The input pipeline on a folder of JPEG files, one thread: whole, and part by part. tests/bench/decode_augment runs
/// it in turn with the published pipeline (decode_augment_peer.py).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <vector>

#include <fmt/format.h>

#include "bench/bench.hpp"
#include "core/files.hpp"
#include "data/augment.hpp"

namespace {

using namespace allosaur;
namespace fs = std::filesystem;

constexpr int kGlobal = 224, kLocal = 98, kLocals = 8;
constexpr double kGlobalShare = 0.66, kLocalShare = 0.185;  // the mean areas of crops

/// A centred box of this share of the image's area.
data::CropPlan centred(const io::Image& image, double share) {
  const auto side = [&](int whole) { return std::max(1, static_cast<int>(whole * std::sqrt(share))); };
  data::CropPlan plan;
  plan.box = {0, 0, side(image.width), side(image.height)};
  plan.box.left = (image.width - plan.box.width) / 2;
  plan.box.top = (image.height - plan.box.height) / 2;
  return plan;
}

void resize(io::Resizer& resizer, const io::Image& image, double share, int size, data::Crop& crop) {
  const data::CropBox box = centred(image, share).box;
  crop.resize(3, size, size);
  resizer.planar(image, {double(box.left), double(box.top), double(box.width), double(box.height)}, size, size, false,
                 crop.values.data());
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    fmt::print(stderr, "usage: bench_decode_augment FOLDER, then a part a line on standard input\n");
    return 2;
  }
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(arguments[1])) paths.push_back(entry.path());
  std::ranges::sort(paths);
  std::vector<std::vector<std::byte>> files;
  std::vector<io::Image> images;
  std::vector<data::Crop> crops;
  io::Resizer resizer;
  for (const fs::path& path : paths) {
    const std::string text = core::read_text(path);
    const auto* begin = reinterpret_cast<const std::byte*>(text.data());
    files.emplace_back(begin, begin + text.size());
    images.push_back(io::decode_image(files.back()));
    resize(resizer, images.back(), kGlobalShare, kGlobal, crops.emplace_back());
  }
  data::AugmentConfig config;
  config.local_crops_size = kLocal;
  data::Augmenter augmenter(config);
  const data::Normalization normalization(config);
  std::vector<float> out(3 * (2 * kGlobal * kGlobal + kLocals * kLocal * kLocal));
  std::vector<void*> places{out.data(), out.data() + 3 * kGlobal * kGlobal};
  for (int l = 0; l < kLocals; ++l) places.push_back(out.data() + 3 * (2 * kGlobal * kGlobal + l * kLocal * kLocal));
  std::int64_t position = 0;
  io::Image decoded;
  data::Crop crop;
  std::vector<std::uint8_t> copy;
  const std::map<std::string, std::function<void(std::size_t)>> parts{
      {"whole", [&](std::size_t i) { augmenter.augment(files[i], 0, position++, places); }},
      {"decode", [&](std::size_t i) { io::decode_image(files[i], {}, decoded); }},
      {"copy", [&](std::size_t i) { copy = images[i].pixels; }},  // what memory allows: each pixel read and written
      {"resize",
       [&](std::size_t i) {
         for (int c = 0; c < 2; ++c) resize(resizer, images[i], kGlobalShare, kGlobal, crop);
         for (int l = 0; l < kLocals; ++l) resize(resizer, images[i], kLocalShare, kLocal, crop);
       }},
      {"colour",
       [&](std::size_t i) {
         crop = crops[i];
         data::adjust_brightness(crop, 0.9);
         data::adjust_contrast(crop, 1.1);
         data::adjust_saturation(crop, 1.1);
         data::adjust_hue(crop, 0.03);
       }},
      {"brightness", [&](std::size_t i) { data::adjust_brightness(crops[i], 0.9); }},
      {"contrast", [&](std::size_t i) { data::adjust_contrast(crops[i], 1.1); }},
      {"saturation", [&](std::size_t i) { data::adjust_saturation(crops[i], 1.1); }},
      {"hue", [&](std::size_t i) { data::adjust_hue(crops[i], 0.03); }},
      {"blur",
       [&](std::size_t i) {
         crop = crops[i];
         data::gaussian_blur(crop, 1.0);
       }},
      {"normalize", [&](std::size_t i) { normalization.write(crops[i], out.data()); }},
  };
  for (std::string part; std::getline(std::cin, part);) {
    const auto& body = parts.at(part);
    const double seconds = bench::seconds([&] {
      for (std::size_t i = 0; i < files.size(); ++i) body(i);
    });
    fmt::print("{{\"milliseconds\": {:.4f}}}\n", seconds / double(files.size()) * 1e3);
    std::fflush(stdout);
  }
}
