// Damages images in every way and decodes them: each must give a whole image or core::InputError. What an iteration
// does depends on the seed and its number alone.
//
//   fuzz_images FOLDER [ITERATIONS [SEED]]     FOLDER: whole images, of any format

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "io/image.hpp"

using namespace allosaur;

namespace {

struct Sample {
  std::string name, content;
};

std::vector<Sample> samples_of(const std::filesystem::path& folder) {
  std::vector<Sample> samples;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() == ".rgb") continue;  // what tests expect of the others
    samples.push_back({file.path().filename(), core::read_text(file.path())});
  }
  if (samples.empty()) throw core::InputError(folder.string() + " has no files.");
  std::sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) { return a.name < b.name; });
  return samples;
}

std::size_t below(core::Random& random, std::size_t n) {
  return static_cast<std::size_t>(random.below(static_cast<std::int64_t>(n)));
}

/// Half of the time in the first bytes, where headers are.
std::size_t position_in(core::Random& random, const std::string& content) {
  return below(random, random.chance(0.5) ? std::min<std::size_t>(content.size(), 160) : content.size());
}

void edit_field(core::Random& random, std::string& content) {
  constexpr std::array<std::uint32_t, 12> kValues = {0,      1,      2,      0x7F,    0x80,       0xFF,
                                                     0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF};
  const std::uint32_t value = random.chance(0.7)   ? kValues[below(random, kValues.size())]
                              : random.chance(0.5) ? static_cast<std::uint32_t>(content.size())
                                                   : random.bits();
  const std::size_t size = std::size_t{1} << below(random, 3), at = position_in(random, content);
  const bool big_endian = random.chance(0.5);
  for (std::size_t i = 0; i < size && at + i < content.size(); ++i) {
    content[at + i] = static_cast<char>(value >> 8 * (big_endian ? size - 1 - i : i));
  }
}

void splice(core::Random& random, std::string& content, const std::string& other) {
  const std::size_t at = position_in(random, content), from = position_in(random, other);
  const std::size_t length = below(random, 1 + std::min<std::size_t>(other.size() - from, 300));
  content.replace(at, random.chance(0.5) ? std::min(length, content.size() - at) : 0, other, from, length);
}

void mutate(core::Random& random, std::string& content, const std::string& other) {
  switch (content.empty() ? -1 : random.below(5)) {
    case 0:
      for (std::int64_t flips = 1 + random.below(8); flips > 0; --flips) {
        char& byte = content[position_in(random, content)];
        byte = static_cast<char>(byte ^ 1 << random.below(8));
      }
      break;
    case 1:
      content.resize(below(random, content.size()));
      break;
    case 2:
      splice(random, content, other);
      break;
    case 3:
      edit_field(random, content);
      break;
    case 4: {
      const std::size_t at = position_in(random, content);
      const std::size_t length = std::min(content.size() - at, 1 + below(random, 64));
      std::fill_n(content.begin() + static_cast<std::ptrdiff_t>(at), length, random.chance(0.5) ? '\0' : '\xFF');
      break;
    }
    default:
      break;
  }
}

std::uint32_t crc32(std::string_view bytes) {
  std::uint32_t crc = ~0u;
  for (const char byte : bytes) {
    crc ^= static_cast<std::uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

/// Makes the checksums of a PNG's chunks true, so that the damage is met by what comes after them.
void repair_png(std::string& content) {
  if (!content.starts_with("\x89PNG")) return;
  for (std::size_t at = 8; at + 12 <= content.size();) {
    std::size_t length = 0;
    for (std::size_t i = 0; i < 4; ++i) length = length << 8 | static_cast<std::uint8_t>(content[at + i]);
    if (length > content.size() - at - 12) return;
    const std::uint32_t crc = crc32(std::string_view(content).substr(at + 4, length + 4));
    for (std::size_t i = 0; i < 4; ++i) content[at + 8 + length + i] = static_cast<char>(crc >> (24 - 8 * i));
    at += length + 12;
  }
}

/// Whether the content was decoded rather than refused; any other outcome throws.
bool decode(const std::string& content, const io::DecodeOptions& options, io::Image& into) {
  const auto bytes = std::as_bytes(std::span(content));
  try {
    io::decode_image(bytes, options, into);
  } catch (const core::InputError&) {
    try {
      io::probe_image(bytes);
    } catch (const core::InputError&) {
    }
    return false;
  }
  const io::ImageInfo info = io::probe_image(bytes);
  const int denominator = info.format == io::ImageFormat::jpeg ? options.denominator : 1;
  const auto side = [denominator](int whole) { return (whole + denominator - 1) / denominator; };
  if (into.channels != options.channels || into.width != side(info.width) || into.height != side(info.height) ||
      into.width < 1 || into.height < 1 || info.channels < 1 || info.bits < 1 ||
      std::ssize(into.pixels) != std::int64_t{into.width} * into.height * into.channels) {
    throw std::logic_error(fmt::format("an image of {} x {} x {} with {} values; its header: {} x {}", into.width,
                                       into.height, into.channels, into.pixels.size(), info.width, info.height));
  }
  return true;
}

int run(const std::filesystem::path& folder, std::uint64_t iterations, std::uint64_t seed) {
  const std::vector<Sample> samples = samples_of(folder);
  // Mostly what any image can be converted to.
  const std::array<io::DecodeOptions, 9> options = {{{},
                                                     {},
                                                     {.denominator = 8},
                                                     {.channels = 1},
                                                     {.channels = 1, .denominator = 2, .range16 = {0, 1}},
                                                     {.range16 = {1000, 9000}},
                                                     {.channels = 2},
                                                     {.channels = 4},
                                                     {.channels = 5}}};
  io::Image used_again;
  std::uint64_t decoded = 0, refused = 0;
  double slowest = 0;
  for (std::uint64_t iteration = 0; iteration < iterations; ++iteration) {
    core::Random random(seed, core::Purpose::demo, iteration);
    const Sample& sample = samples[below(random, samples.size())];
    std::string content = sample.content;
    for (std::int64_t mutations = random.below(3); mutations >= 0; --mutations) {
      mutate(random, content, samples[below(random, samples.size())].content);
    }
    if (random.chance(0.8)) repair_png(content);
    content.shrink_to_fit();  // so that a sanitizer sees reads past its end
    io::Image fresh;
    const auto begin = std::chrono::steady_clock::now();
    try {
      const bool whole =
          decode(content, options[below(random, options.size())], random.chance(0.5) ? fresh : used_again);
      ++(whole ? decoded : refused);
    } catch (const std::exception& error) {
      fmt::print("Iteration {} of seed {}, made of {}: {}\n", iteration, seed, sample.name, error.what());
      return 1;
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    slowest = std::max(slowest, taken.count());
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  fmt::print("{} decoded, {} refused; the slowest took {:.0f} ms; {} MiB of memory at most\n", decoded, refused,
             1e3 * slowest, usage.ru_maxrss / 1024);
  // Every format but WebP without loss bounds its pixels by the size of the file; that one has sides of 14 bits.
  constexpr long kMostMemory = 3L << 20;  // KiB
  if (usage.ru_maxrss > kMostMemory) fmt::print("That is too much memory.\n");
  return decoded == 0 || refused == 0 || usage.ru_maxrss > kMostMemory ? 1 : 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2 || count > 4) {
    fmt::print("usage: fuzz_images FOLDER [ITERATIONS [SEED]]\n");
    return 2;
  }
  return run(arguments[1], count > 2 ? std::stoull(arguments[2]) : 50000, count > 3 ? std::stoull(arguments[3]) : 1);
}
