#include "io/torch_file.hpp"

#include <archive.h>
#include <archive_entry.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <string_view>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "io/pickle.hpp"

// The format: a zip archive, whose members lie in one folder and are not compressed. `data.pkl` is the pickle of what
// was saved, `data/<name>` the bytes of a storage, `byteorder` theirs (absent: little).
namespace allosaur::io {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kReadAhead = 1U << 20;
constexpr std::int64_t kMaxPickleBytes = 16'000'000;  // the largest published network has 0.2 MB
constexpr std::string_view kZip("PK\3\4", 4);
constexpr std::string_view kPickle("\x80\2", 2);
/// The pickled number that files before PyTorch 1.6 begin with.
constexpr std::string_view kFormer("\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 14);

[[noreturn]] void fail(const fs::path& file, const std::string& what) {
  throw core::StorageError(fmt::format("{} {}.", file.string(), what));
}
[[noreturn]] void damaged(const fs::path& file, const std::string& what) {
  fail(file, "is damaged, or not written by torch.save: " + what);
}

std::string first_bytes(const fs::path& file) {
  std::string bytes(kFormer.size(), '\0');
  std::ifstream stream(file, std::ios::binary);
  stream.read(bytes.data(), std::ssize(bytes));
  bytes.resize(static_cast<std::size_t>(stream.gcount()));
  return bytes;
}

struct Free {
  void operator()(archive* handle) const noexcept { archive_read_free(handle); }
};
using Handle = std::unique_ptr<archive, Free>;

/// The members of an archive one after the other.
class Members {
 public:
  explicit Members(const fs::path& file) : file_(file), handle_(archive_read_new()) {
    if (!handle_) throw std::bad_alloc();
    archive_read_support_format_zip_seekable(handle_.get());
    check(archive_read_open_filename(handle_.get(), file.c_str(), kReadAhead));
  }
  bool next() {
    archive_entry* entry = nullptr;
    if (!check(archive_read_next_header(handle_.get(), &entry))) return false;
    const char* path = archive_entry_pathname(entry);
    if (path == nullptr) path = archive_entry_pathname_utf8(entry);
    name_ = path != nullptr ? path : "";
    name_.erase(0, name_.find('/') + 1);
    size_ = archive_entry_size(entry);
    return true;
  }
  /// Without the folder.
  const std::string& name() const { return name_; }
  std::int64_t size() const { return size_; }
  void read(void* out) {
    auto* position = static_cast<char*>(out);
    std::int64_t left = size_;
    std::array<char, 1> behind{};  // reading past the end has the checksum compared
    while (true) {
      const bool end = left == 0;
      const auto got = archive_read_data(handle_.get(), end ? behind.data() : position,
                                         end ? behind.size() : static_cast<std::size_t>(left));
      if (got < 0) check(static_cast<int>(got));
      if (got <= 0 || end) {
        if (left != 0 || got != 0) damaged(file_, fmt::format("its record {} has another size than it says", name_));
        return;
      }
      position += got;
      left -= got;
    }
  }

 private:
  /// Whether there is something more.
  bool check(int code) const {
    if (code == ARCHIVE_OK) return true;
    if (code == ARCHIVE_EOF) return false;
    const char* text = archive_error_string(handle_.get());
    damaged(file_, text == nullptr ? "unknown error" : text);
  }

  const fs::path& file_;
  Handle handle_;
  std::string name_;
  std::int64_t size_ = 0;
};

/// What can be known before any storage is read.
struct Content {
  std::string pickle;
  std::map<std::string, std::int64_t> bytes;  // of each storage
};

Content read_content(const fs::path& file, std::int64_t file_bytes) {
  Content content;
  std::int64_t total = 0;
  bool program = false;
  for (Members members(file); members.next();) {
    const std::string& name = members.name();
    if (members.size() < 0 || members.size() > file_bytes - total)
      damaged(file, fmt::format("its record {} is compressed, or larger than the file", name));
    total += members.size();
    if (name == "data.pkl" || name == "byteorder") {
      if (members.size() > kMaxPickleBytes) damaged(file, fmt::format("its record {} is too large", name));
      std::string text(static_cast<std::size_t>(members.size()), '\0');
      members.read(text.data());
      if (name == "data.pkl")
        content.pickle = std::move(text);
      else if (text != "little")
        fail(file, "was written on a machine of another byte order: save it again on one like this");
    } else if (name.starts_with("data/")) {
      if (!content.bytes.emplace(name.substr(5), members.size()).second)
        damaged(file, fmt::format("its record {} stands in it twice", name));
    } else if (name == "constants.pkl" || name.starts_with("code/")) {
      program = true;
    }
  }
  if (program)
    fail(file,
         "is a TorchScript program: save its weights alone, torch.save(torch.jit.load(file).state_dict(), other)");
  if (content.pickle.empty()) damaged(file, "it is a zip archive without a record data.pkl");
  return content;
}

/// Throws unless the tensor lies within its storage and is no larger than it.
void check_bounds(const fs::path& file, const std::string& name, const PickledTensor& tensor, std::int64_t bytes) {
  const auto refuse = [&] {
    damaged(file, fmt::format("tensor \"{}\" of shape [{}] does not fit its storage of {} bytes", name,
                              fmt::join(tensor.sizes, ", "), bytes));
  };
  std::int64_t storage = 0, elements = 1, last = tensor.offset;
  bool wrong =
      tensor.count < 0 || tensor.offset < 0 || tensor.sizes.size() != tensor.strides.size() ||
      __builtin_mul_overflow(tensor.count, static_cast<std::int64_t>(c10::elementSize(tensor.type)), &storage) ||
      storage != bytes;
  for (std::size_t i = 0; i < tensor.sizes.size() && !wrong; ++i) {
    std::int64_t step = 0;
    wrong = tensor.sizes[i] < 0 || tensor.strides[i] < 0 ||
            __builtin_mul_overflow(elements, tensor.sizes[i], &elements) ||
            (tensor.sizes[i] > 0 && (__builtin_mul_overflow(tensor.sizes[i] - 1, tensor.strides[i], &step) ||
                                     __builtin_add_overflow(last, step, &last)));
  }
  if (wrong || elements > tensor.count || (elements > 0 && last >= tensor.count)) refuse();
}

}  // namespace

bool is_torch_file(const fs::path& file) {
  std::string ending = file.extension().string();
  std::ranges::transform(ending, ending.begin(),
                         [](char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c); });
  if (ending == ".pth" || ending == ".pt") return true;
  const std::string begin = first_bytes(file);
  return begin.starts_with(kZip) || begin == kFormer;
}

NamedTensors read_torch_file(const fs::path& file) {
  std::error_code error;
  const auto file_bytes = static_cast<std::int64_t>(fs::file_size(file, error));
  if (error) fail(file, fmt::format("cannot be opened: {}", error.message()));
  const std::string begin = first_bytes(file);
  if (begin.starts_with(kPickle))
    fail(file,
         "has the format of PyTorch before 1.6. Save it again with a current one: "
         "torch.save(torch.load(file, map_location=\"cpu\"), file)");
  if (!begin.starts_with(kZip)) fail(file, "is no file that torch.save wrote: it is no zip archive");

  const Content content = read_content(file, file_bytes);
  const auto pickled = pickled_tensors(content.pickle, file);
  std::map<std::string, at::Tensor> storages;
  for (const auto& [name, tensor] : pickled) {
    const auto found = content.bytes.find(tensor.storage);
    if (found == content.bytes.end()) damaged(file, fmt::format("the values of tensor \"{}\" are missing", name));
    check_bounds(file, name, tensor, found->second);
    storages[tensor.storage];
  }
  for (Members members(file); members.next();) {
    if (!members.name().starts_with("data/")) continue;
    const auto wanted = storages.find(members.name().substr(5));
    if (wanted == storages.end()) continue;
    if (members.size() != content.bytes.at(wanted->first)) damaged(file, "it changes while it is read");
    wanted->second = at::empty({members.size()}, at::kByte);
    members.read(wanted->second.mutable_data_ptr());
  }

  NamedTensors tensors;
  std::int64_t copied = 0;  // bytes
  for (const auto& [name, tensor] : pickled) {
    const bool boolean =
        tensor.type == at::kBool;  // read as numbers: a bool of any other value than 0 or 1 is undefined
    const at::Tensor& storage = storages.at(tensor.storage);
    if (!storage.defined()) damaged(file, "it changes while it is read");
    at::Tensor view =
        storage.view(boolean ? at::kByte : tensor.type).as_strided(tensor.sizes, tensor.strides, tensor.offset);
    if (boolean || !view.is_contiguous()) {
      copied += static_cast<std::int64_t>(view.nbytes());
      if (copied > file_bytes) damaged(file, "its tensors overlap");
      view = boolean ? view.ne(0) : view.contiguous();
    }
    tensors.emplace_back(name, view);
  }
  return tensors;
}

}  // namespace allosaur::io
