#include "io/safetensors.hpp"

#include <cstdint>
#include <cstring>
#include <string>

#include <ATen/ATen.h>

#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "plain_file.hpp"
#include "testing.hpp"

using namespace allosaur;

namespace {

/// A file of `header` (its length written before it) and `data` bytes of zeros.
std::filesystem::path write_raw(const std::filesystem::path& folder, const std::string& header, std::size_t data) {
  const std::uint64_t length = header.size();
  std::string text(sizeof length, '\0');
  std::memcpy(text.data(), &length, sizeof length);
  const std::filesystem::path file = folder / "raw.safetensors";
  testing::overwrite(file, text + header + std::string(data, '\0'));
  return file;
}

}  // namespace

TEST_CASE("safetensors: what is written is read") {
  const testing::TemporaryDirectory directory;
  const auto file = directory.path() / ("weights" + std::to_string(testing::world().rank()) + ".safetensors");
  const io::NamedTensors tensors = {{"flags", at::arange(5).remainder(2).to(at::kBool)},
                                    {"a.weight", at::randn({3, 4})},
                                    {"half", at::randn({7}).to(at::kHalf)},
                                    {"brain", at::randn({2, 1, 2}).to(at::kBFloat16)},
                                    {"scalar", at::scalar_tensor(2.5, at::kDouble)},
                                    {"empty", at::empty({0, 4}, at::kInt)},
                                    {"bytes", at::arange(9, at::kByte)},
                                    {"transposed", at::arange(12, at::kLong).view({3, 4}).t()}};
  io::write_safetensors(file, tensors, {{"format", "pt"}, {"note", "ünïcode \"quoted\""}});
  CHECK_FALSE(std::filesystem::exists(file.string() + ".tmp"));
  const io::Safetensors read = io::read_safetensors(file);
  CHECK(read.tensors.size() == tensors.size());
  CHECK(read.metadata.at("note") == "ünïcode \"quoted\"");
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    const at::Tensor* found = read.find(name);
    REQUIRE(found != nullptr);
    CHECK((found->scalar_type() == tensor.scalar_type()));
    CHECK(found->is_contiguous());
    CHECK(at::equal(*found, tensor));
  }
  CHECK(read.find("other") == nullptr);
  std::uint64_t header_bytes = 0;
  core::read_text(file).copy(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
  CHECK(header_bytes % 8 == 0);
}

TEST_CASE("safetensors: hostile files are refused with a reason") {
  const testing::TemporaryDirectory directory;
  const auto folder = directory.path() / std::to_string(testing::world().rank());
  core::make_directory(folder);
  const auto check = [&](const std::string& header, std::size_t data, const char* reason) {
    CAPTURE(header);
    CHECK_THROWS_WITH_AS(io::read_safetensors(write_raw(folder, header, data)), doctest::Contains(reason),
                         core::StorageError);
  };
  const auto entry = [](const std::string& name, const std::string& type, const std::string& shape,
                        const std::string& offsets) {
    return "\"" + name + R"(":{"dtype":")" + type + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
  };
  const std::string a = entry("a", "F32", "[2]", "[0,8]");
  CHECK(io::read_safetensors(write_raw(folder, "{" + a + "}", 8)).tensors.size() == 1);

  check("{" + a + "}", 7, "cut off");
  check("{" + a + "}", 9, "its tensors take 8 bytes");
  check("{" + a + "," + entry("b", "U8", "[2]", "[9,11]") + "}", 11, "gap");
  check("{" + a + "," + entry("b", "U8", "[2]", "[7,9]") + "}", 9, "overlap");
  check("{" + a + "," + entry("a", "F32", "[2]", "[0,8]") + "}", 8, "twice");
  check("{" + entry("a", "F32", "[3]", "[0,8]") + "}", 8, "do not fit its 12 bytes");
  check("{" + entry("a", "F32", "[2]", "[8,0]") + "}", 8, "do not fit");
  check("{" + entry("a", "F32", "[-2]", "[0,8]") + "}", 8, "impossible shape");
  check("{" + entry("a", "F32", "[4294967296,4294967296]", "[0,8]") + "}", 8, "impossible shape");
  check("{" + entry("a", "F32", "[2]", "[0,8,9]") + "}", 8, "impossible offsets");
  check("{" + entry("a", "F32", "[2]", "[0.0,8.0]") + "}", 8, "impossible offsets");
  check("{" + entry("a", "F8_E4M3", "[8]", "[0,8]") + "}", 8, "the type 'F8_E4M3'");
  check(R"({"a":{"dtype":"F32","shape":[2]}})", 8, "data_offsets");
  check(R"({"a":3})", 8, "not a valid safetensors file");
  check(R"({"__metadata__":{"x":1}})", 0, "not a valid safetensors file");
  check("[1,2]", 0, "not a JSON object");
  check("not json", 0, "not a valid safetensors file");
  check(std::string(100000, '['), 0, "nested too deeply");
  check("", 0, "not a valid safetensors file");

  const auto file = folder / "raw.safetensors";
  testing::overwrite(file, std::string("\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F{}", 10));
  CHECK_THROWS_WITH_AS(io::read_safetensors(file), doctest::Contains("claims a header of"), core::StorageError);
  testing::overwrite(file, "abc");
  CHECK_THROWS_WITH_AS(io::read_safetensors(file), doctest::Contains("too short"), core::StorageError);
  CHECK_THROWS_WITH_AS(io::read_safetensors(folder / "none"), doctest::Contains("No such file"), core::StorageError);
  CHECK_THROWS_AS(io::read_safetensors(folder), core::StorageError);
}

TEST_CASE("safetensors: flipped bits of the header never crash") {
  const testing::TemporaryDirectory directory;
  const auto file = directory.path() / ("flipped" + std::to_string(testing::world().rank()));
  io::write_safetensors(file, {{"a", at::zeros({3, 2})}, {"b", at::ones({4}, at::kBool)}}, {{"k", "v"}});
  const std::string whole = core::read_text(file);
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    core::Random random(seed, core::Purpose::demo, 1);
    std::string flipped = whole;
    auto& byte = flipped[static_cast<std::size_t>(random.below(std::ssize(flipped)))];
    byte = static_cast<char>(byte ^ (1 << random.below(8)));
    testing::overwrite(file, flipped);
    std::size_t tensors = 2;
    try {
      tensors = io::read_safetensors(file).tensors.size();
    } catch (const core::StorageError&) {
    }
    CHECK(tensors <= 2);  // a flipped bit may hide a tensor without elements, but makes none
  }
}
