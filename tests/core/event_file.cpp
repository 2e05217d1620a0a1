#include "core/event_file.hpp"

#include <sys/resource.h>

#include <bit>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/files.hpp"
#include "testing.hpp"

using namespace allosaur;

namespace {

using Scalars = std::vector<std::pair<std::string_view, double>>;

/// CRC-32C bit by bit, straight from its definition.
std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82F63B78 : crc >> 1;
  }
  return ~crc;
}

template <class T>
T take(std::string_view& bytes) {
  T value{};
  if (bytes.size() < sizeof(T)) throw core::InputError("The record ends too early.");
  std::memcpy(&value, bytes.data(), sizeof(T));
  bytes.remove_prefix(sizeof(T));
  return value;
}

std::uint64_t take_varint(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<unsigned char>(bytes);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
}

/// The records of a file, with both checksums checked.
std::vector<std::string> records(const std::filesystem::path& file) {
  const std::string text = core::read_text(file);
  std::string_view rest = text;
  const auto unmask = [](std::uint32_t masked) {
    const std::uint32_t rotated = masked - 0xa282ead8;
    return rotated >> 17 | rotated << 15;
  };
  std::vector<std::string> found;
  while (!rest.empty()) {
    const std::string_view header = rest.substr(0, 8);
    const auto length = take<std::uint64_t>(rest);
    CHECK(unmask(take<std::uint32_t>(rest)) == crc32c(header));
    found.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
    CHECK(unmask(take<std::uint32_t>(rest)) == crc32c(found.back()));
  }
  return found;
}

/// A decoded message: by field number, numbers as bits and strings as bytes.
struct Message {
  std::map<unsigned, std::uint64_t> numbers;
  std::map<unsigned, std::vector<std::string>> strings;
};

Message decode(std::string_view bytes) {
  Message message;
  while (!bytes.empty()) {
    const std::uint64_t key = take_varint(bytes);
    const auto field = static_cast<unsigned>(key >> 3);
    switch (key & 7) {
      case 0:
        message.numbers[field] = take_varint(bytes);
        break;
      case 1:
        message.numbers[field] = take<std::uint64_t>(bytes);
        break;
      case 2: {
        const std::uint64_t length = take_varint(bytes);
        message.strings[field].emplace_back(bytes.substr(0, length));
        bytes.remove_prefix(length);
        break;
      }
      case 5:
        message.numbers[field] = take<std::uint32_t>(bytes);
        break;
      default:
        throw core::InputError("A field has an unknown type.");
    }
  }
  return message;
}

std::vector<std::filesystem::path> files_in(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
  return files;
}

}  // namespace

TEST_CASE("event file: what is written is read back, with its checksums") {
  CHECK(crc32c("123456789") == 0xE3069283);  // the published check value
  const testing::TemporaryDirectory folder;
  const std::string long_tag(200, 't');
  core::EventFile events(folder.path(), 300);
  events.write(300, Scalars{{"loss/total", 1.5}, {"lr", 1e-3}});
  events.write(std::int64_t{1} << 40, Scalars{{long_tag, -0.25}, {"bad", std::numeric_limits<double>::quiet_NaN()}});

  REQUIRE(files_in(folder.path()).size() == 1);
  const auto file = files_in(folder.path()).front();
  CHECK(file.filename().string().starts_with("events.out.tfevents."));
  const auto found = records(file);  // `events` is still open: every call is in the file when it returns
  REQUIRE(found.size() == 4);
  const Message version = decode(found[0]), start = decode(found[1]);
  CHECK(version.strings.at(3).front() == "brain.Event:2");
  CHECK(start.numbers.at(2) == 300);
  CHECK(decode(start.strings.at(7).front()).numbers.at(1) == 1);

  const auto scalars = [&](std::size_t record) {
    std::vector<std::pair<std::string, float>> all;
    const Message event = decode(found[record]);
    const Message summary = decode(event.strings.at(5).front());
    for (const std::string& bytes : summary.strings.at(1)) {
      const Message value = decode(bytes);
      all.emplace_back(value.strings.at(1).front(),
                       std::bit_cast<float>(static_cast<std::uint32_t>(value.numbers.at(2))));
    }
    return all;
  };
  const auto first = scalars(2), second = scalars(3);
  CHECK(first == std::vector<std::pair<std::string, float>>{{"loss/total", 1.5F}, {"lr", 1e-3F}});
  REQUIRE(second.size() == 2);
  CHECK(second[0] == std::pair{long_tag, -0.25F});
  CHECK(std::isnan(second[1].second));
  CHECK(decode(found[2]).numbers.at(2) == 300);
  CHECK(decode(found[3]).numbers.at(2) == std::uint64_t{1} << 40);
  const auto time = std::bit_cast<double>(decode(found[2]).numbers.at(1));
  CHECK(time > 1.6e9);
  CHECK(time < 1e11);
}

TEST_CASE("event file: a restart makes a file of its own") {
  const testing::TemporaryDirectory folder;
  core::EventFile(folder.path(), 0).write(1, Scalars{{"loss", 2}});
  core::EventFile(folder.path(), 2).write(2, Scalars{{"loss", 1}});
  const auto files = files_in(folder.path());
  CHECK(files.size() == 2);
  for (const auto& file : files) CHECK(records(file).size() == 3);
}

TEST_CASE("event file: a folder that cannot be written is an error that names the file") {
  const testing::TemporaryDirectory folder;
  CHECK_THROWS_WITH_AS(core::EventFile(folder.path() / "none", 0), doctest::Contains("none/events.out.tfevents."),
                       core::StorageError);
}

TEST_CASE("event file: a write that the system refuses is an error that names the file") {
  const testing::TemporaryDirectory folder;
  core::EventFile events(folder.path(), 0);
  // Files of this process may not grow past the file's present size: as on a full disk, the write fails.
  rlimit limit{};
  ::getrlimit(RLIMIT_FSIZE, &limit);
  const rlim_t usual = std::exchange(limit.rlim_cur, file_size(files_in(folder.path()).front()));
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &limit);
  CHECK_THROWS_WITH_AS(events.write(1, Scalars{{"loss", 2}}), doctest::Contains("events.out.tfevents."),
                       core::StorageError);
  limit.rlim_cur = usual;
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
}
