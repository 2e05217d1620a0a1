#include "io/torch_file.hpp"

#include <archive.h>
#include <archive_entry.h>

#include <map>

#include <ATen/ATen.h>

#include "core/error.hpp"
#include "core/files.hpp"
#include "core/random.hpp"
#include "io/pickle.hpp"
#include "plain_file.hpp"
#include "testing.hpp"

// The files of tests/data/weights are written by make_weights.py with PyTorch 2.11.
using namespace allosaur;
using namespace std::string_literals;

namespace {

using Records = std::map<std::string, std::string>;

std::filesystem::path recorded(const char* name) {
  return testing::data_directory() / "weights" / name;
}

Records records_of(const std::filesystem::path& file) {
  Records records;
  archive* zip = archive_read_new();
  archive_read_support_format_zip_seekable(zip);
  REQUIRE(archive_read_open_filename(zip, file.c_str(), 1 << 16) == ARCHIVE_OK);
  archive_entry* entry = nullptr;
  while (archive_read_next_header(zip, &entry) == ARCHIVE_OK) {
    std::string bytes(static_cast<std::size_t>(archive_entry_size(entry)), '\0');
    archive_read_data(zip, bytes.data(), bytes.size());
    const std::string path = archive_entry_pathname(entry);
    records[path.substr(path.find('/') + 1)] = bytes;
  }
  archive_read_free(zip);
  return records;
}

void write_zip(const std::filesystem::path& file, const Records& records, bool compress = false) {
  archive* zip = archive_write_new();
  archive_write_set_format_zip(zip);
  if (compress)
    archive_write_zip_set_compression_deflate(zip);
  else
    archive_write_zip_set_compression_store(zip);
  archive_write_open_filename(zip, file.c_str());
  for (const auto& [name, bytes] : records) {
    archive_entry* entry = archive_entry_new();
    archive_entry_set_pathname(entry, ("weights/" + name).c_str());
    archive_entry_set_size(entry, std::ssize(bytes));
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_write_header(zip, entry);
    archive_write_data(zip, bytes.data(), bytes.size());
    archive_entry_free(entry);
  }
  archive_write_close(zip);
  archive_write_free(zip);
}

std::map<std::string, at::Tensor> read(const std::filesystem::path& file) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : io::read_torch_file(file)) tensors[name] = tensor;
  return tensors;
}

at::Tensor eighths(std::int64_t first, std::int64_t count) {
  return at::arange(first, first + count, at::kFloat) / 8;
}

std::string changed(std::string bytes, std::uint64_t seed) {
  core::Random random(seed, core::Purpose::demo, 2);
  for (int i = 0; i < 3; ++i) {
    auto& byte = bytes[static_cast<std::size_t>(random.below(std::ssize(bytes)))];
    byte = random.below(2) == 0 ? static_cast<char>(byte ^ (1 << random.below(8)))
                                : bytes[static_cast<std::size_t>(random.below(std::ssize(bytes)))];
  }
  return bytes;
}

}  // namespace

TEST_CASE("weights of PyTorch: a module's state_dict, of every type") {
  for (const char* name : {"state_dict.pth", "protocol4.pth"}) {
    CAPTURE(name);
    CHECK(io::is_torch_file(recorded(name)));
    const auto tensors = read(recorded(name));
    CHECK(tensors.size() == 16);
    CHECK(at::equal(tensors.at("child.weight"), eighths(0, 6).view({2, 3})));
    CHECK(at::equal(tensors.at("child.bias"), eighths(6, 2)));
    CHECK(tensors.at("tied").data_ptr() == tensors.at("child.weight").data_ptr());
    for (const auto& [type, scalar] : std::map<std::string, at::ScalarType>{{"float16", at::kHalf},
                                                                            {"bfloat16", at::kBFloat16},
                                                                            {"float64", at::kDouble},
                                                                            {"int64", at::kLong},
                                                                            {"int32", at::kInt},
                                                                            {"int16", at::kShort},
                                                                            {"int8", at::kChar},
                                                                            {"uint8", at::kByte}}) {
      CAPTURE(type);
      CHECK(at::equal(tensors.at("of_" + type), eighths(8, 2).to(scalar)));
    }
    CHECK(at::equal(tensors.at("flags"), at::tensor({1, 0, 1}).to(at::kBool)));
    CHECK(at::equal(tensors.at("scalar"), at::scalar_tensor(2.5)));
    CHECK((tensors.at("empty").sizes() == at::IntArrayRef{0, 4}));
    const at::Tensor transposed = eighths(0, 12).view({3, 4}).t();
    CHECK(at::equal(tensors.at("transposed"), transposed));
    CHECK(tensors.at("transposed").is_contiguous());
    CHECK(at::equal(tensors.at("part"), transposed.slice(0, 1, 3).select(1, 2)));
  }
  CHECK(at::equal(read(recorded("parameter.pth")).at("weight"), eighths(0, 2)));
}

TEST_CASE("weights of PyTorch: what training writes, from a GPU and beside an optimiser") {
  const auto teacher = read(recorded("teacher_checkpoint.pth"));
  CHECK((teacher.at("teacher.backbone.norm.bias").scalar_type() == at::kHalf));
  CHECK(teacher.at("teacher.backbone.norm.bias").is_cpu());
  CHECK(teacher.contains("teacher.dino_head.mlp.0.weight"));
  const auto model = read(recorded("model.pth"));
  CHECK(at::equal(model.at("model.module.norm.bias"), eighths(0, 8)));
  CHECK(at::equal(model.at("optimizer.state.0.exp_avg"), eighths(0, 2)));
}

TEST_CASE("weights of PyTorch: other files are refused with a reason") {
  const auto check = [](const std::filesystem::path& file, const char* reason) {
    CAPTURE(file);
    CHECK_THROWS_WITH_AS(io::read_torch_file(file), doctest::Contains(reason), core::StorageError);
  };
  check(recorded("former.pth"), "Save it again with a current one: torch.save(torch.load(");
  check(recorded("module.pth"), "refers to the Python name \"torch.nn.modules.module.Module\"");
  check(recorded("list.pth"), "holds no dictionary of tensors");
  check(recorded("program.pt"), "is a TorchScript program");
  check(recorded("none.pth"), "cannot be opened: No such file");

  const testing::TemporaryDirectory directory;
  const auto file = directory.path() / std::to_string(testing::world().rank());
  testing::overwrite(file, "something");
  CHECK_FALSE(io::is_torch_file(file));
  check(file, "no zip archive");
  const Records whole = records_of(recorded("state_dict.pth"));
  write_zip(file, whole);
  CHECK(io::is_torch_file(file));
  CHECK(io::read_torch_file(file).size() == 16);
  const auto with = [&](const std::string& name, const std::string& bytes) {
    Records records = whole;
    records[name] = bytes;
    write_zip(file, records);
    return file;
  };
  const auto without = [&](const std::string& name) {
    Records records = whole;
    records.erase(name);
    write_zip(file, records);
    return file;
  };
  check(with("byteorder", "big"), "another byte order");
  check(with("data/0", "12345"), "does not fit its storage of 5 bytes");
  check(without("data/0"), "are missing");
  check(without("data.pkl"), "without a record data.pkl");
  // posix.system, as an attack would have it.
  check(with("data.pkl", "\x80\2cposix\nsystem\nX\2\0\0\0id\x85R."s), "the Python name \"posix.system\"");
  check(with("data.pkl", std::string(100'000, ']') + "."), "does not end where it should");
  Records bomb = whole;
  bomb["data/0"] = std::string(1 << 24, '\0');
  write_zip(file, bomb, /*compress=*/true);
  check(file, "compressed, or larger than the file");

  std::string bytes = core::read_text(recorded("state_dict.pth"));
  const std::string value = "\0\0\x60\x3F"s;  // 0.875, the last of child.bias
  bytes[bytes.find(value) + 2] = '\x20';
  testing::overwrite(file, bytes);
  check(file, "bad CRC");
}

TEST_CASE("weights of PyTorch: containers within themselves, and shapes that do not fit") {
  const std::filesystem::path file = "some.pth";
  // {"a": itself}
  CHECK(io::pickled_tensors("\x80\2}q\0X\1\0\0\0ah\0s."s, file).empty());
  std::string nested = "\x80\2"s;
  for (int i = 0; i < 100; ++i) nested += "}X\1\0\0\0a"s;
  nested += "}"s.append(100, 's').append(".");
  CHECK_THROWS_WITH_AS(io::pickled_tensors(nested, file), doctest::Contains("nested too deeply"), core::StorageError);

  // {"a": a tensor of four values with this shape and these steps}
  const testing::TemporaryDirectory directory;
  const auto zip = directory.path() / std::to_string(testing::world().rank());
  const auto shaped = [&](const std::string& sizes, const std::string& strides, char offset) {
    const std::string pickle =
        "\x80\2}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"s +
        "X\1\0\0\0000X\3\0\0\0cpuK\4tQK"s + offset + sizes + strides + "tRs.";
    write_zip(zip, {{"data.pkl", pickle}, {"data/0", std::string(16, '\0')}});
    return zip;
  };
  CHECK(read(shaped("K\2K\2\x86", "K\2K\1\x86", 0)).at("a").numel() == 4);
  CHECK(read(shaped("K\2\x85", "K\1\x85", 2)).at("a").numel() == 2);
  const std::string minus = "J\xFF\xFF\xFF\xFF", huge = "\x8A\x08\0\0\0\0\0\0\0\x40"s;
  for (const auto& [sizes, strides, offset] :
       std::vector<std::tuple<std::string, std::string, char>>{{"K\3\x85", "K\1\x85", 2},
                                                               {"K\5\x85", "K\0\x85"s, 0},
                                                               {"K\2\x85", "K\4\x85", 0},
                                                               {"K\2\x85", ")", 0},
                                                               {minus + "\x85", "K\1\x85", 0},
                                                               {"K\2\x85", minus + "\x85", 3},
                                                               {huge + huge + "\x86", "K\1K\1\x86", 0},
                                                               {"K\3\x85", huge + "\x85", 0}}) {
    CHECK_THROWS_WITH_AS(io::read_torch_file(shaped(sizes, strides, offset)),
                         doctest::Contains("does not fit its storage"), core::StorageError);
  }
}

TEST_CASE("weights of PyTorch: files cut off and changed anywhere never crash") {
  const testing::TemporaryDirectory directory;
  const auto file = directory.path() / ("changed" + std::to_string(testing::world().rank()));
  const auto look = [&] {
    try {
      for (const auto& [name, tensor] : io::read_torch_file(file)) tensor.to(at::kFloat).sum();
      return true;
    } catch (const core::StorageError&) {
      return false;
    }
  };
  for (const char* name : {"state_dict.pth", "protocol4.pth", "model.pth"}) {
    CAPTURE(name);
    const std::string whole = core::read_text(recorded(name));
    for (std::size_t part = 0; part < 40; ++part) {
      testing::overwrite(file, whole.substr(0, whole.size() * part / 40));
      CHECK_FALSE(look());
    }
    for (std::uint64_t seed = 0; seed < 150; ++seed) {
      testing::overwrite(file, changed(whole, seed));
      look();
    }
    // With checksums that fit, so that what lies behind them is met.
    Records records = records_of(recorded(name));
    const std::string pickle = records.at("data.pkl");
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
      records["data.pkl"] = changed(pickle, seed);
      write_zip(file, records);
      look();
    }
    for (std::size_t length = 0; length < pickle.size(); length += 7)
      CHECK_THROWS_AS(io::pickled_tensors(std::string_view(pickle).substr(0, length), file), core::StorageError);
  }
}
