#pragma once
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "core/random.hpp"
#include "io/image.hpp"
#include "testing.hpp"

namespace allosaur::testing {

/// Collective. Runs `body` on rank 0 only, while the others wait.
template <class Body>
void on_first_rank(Body&& body) {
  world().barrier();
  if (world().rank() == 0) body();
  world().barrier();
}

/// A noisy picture, different for each `number`.
inline io::Image picture(std::uint64_t number, int width, int height) {
  core::Random random(7, core::Purpose::demo, number);
  io::Image image{width, height, 3, {}};
  image.pixels.resize(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3);
  for (std::uint8_t& value : image.pixels) value = static_cast<std::uint8_t>(random.below(256));
  return image;
}

inline void write_file(const std::filesystem::path& file, std::span<const std::byte> bytes) {
  std::filesystem::create_directories(file.parent_path());
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline std::vector<std::byte> read_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

/// `count` JPEG files 00.jpg, 01.jpg, ... of slightly different sizes in `folder`.
inline void write_pictures(const std::filesystem::path& folder, int count) {
  for (int i = 0; i < count; ++i) {
    const std::string name = std::string(i < 10 ? "0" : "") + std::to_string(i) + ".jpg";
    write_file(folder / name, io::encode_jpeg(picture(static_cast<std::uint64_t>(i), 24 + i % 5, 20 + i % 7), 90));
  }
}

}  // namespace allosaur::testing
