#include "io/tar.hpp"

#include <archive.h>
#include <archive_entry.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <memory>
#include <new>

#include <fmt/format.h>

#include "core/error.hpp"

namespace allosaur::io {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kReadAhead = 1U << 20;

struct Free {
  void operator()(archive* handle) const noexcept { archive_read_free(handle); }
};
using Handle = std::unique_ptr<archive, Free>;

std::string reason(const Handle& handle) {
  const char* text = archive_error_string(handle.get());
  return text == nullptr ? "unknown error" : text;
}

/// Whether it was the file system that failed. (For what is wrong with the archive itself libarchive has EILSEQ, EINVAL
/// and -1.)
bool is_failure_to_read(const Handle& handle) {
  const int error = archive_errno(handle.get());
  return error > 0 && error != EILSEQ && error != EINVAL;
}

[[noreturn]] void fail_to_read(const fs::path& file, const Handle& handle) {
  throw core::StorageError(fmt::format("The archive {} cannot be read: {}.", file.string(), reason(handle)));
}

/// Recognises by their first bytes what people call `.tar.gz` and the like.
const char* compression_of(const fs::path& file) {
  std::array<char, 6> head{};
  std::ifstream(file, std::ios::binary).read(head.data(), head.size());
  const std::string_view text(head.data(), head.size());
  if (text.starts_with("\x1F\x8B")) return "gzip";
  if (text.starts_with("BZh")) return "bzip2";
  if (text.starts_with("\xFD"
                       "7zXZ"))
    return "xz";
  if (text.starts_with("\x28\xB5\x2F\xFD")) return "Zstandard";
  return nullptr;
}

Handle open(const fs::path& file) {
  if (const char* compression = compression_of(file)) {
    throw core::InputError(fmt::format(
        "The archive {} is compressed with {}, so its images cannot be read in any order. Unpack it to a plain tar.",
        file.string(), compression));
  }
  Handle handle(archive_read_new());
  if (!handle) throw std::bad_alloc();
  archive_read_support_format_tar(handle.get());
  archive_read_support_format_empty(handle.get());
  if (archive_read_open_filename(handle.get(), file.c_str(), kReadAhead) != ARCHIVE_OK) {
    if (is_failure_to_read(handle)) fail_to_read(file, handle);
    throw core::InputError(fmt::format("The archive {} cannot be read: {}.", file.string(), reason(handle)));
  }
  return handle;
}

/// Why a member is left out; nullptr when it is a regular file.
const char* why_not(archive_entry* entry) {
  if (archive_entry_hardlink(entry) != nullptr || archive_entry_filetype(entry) == AE_IFLNK)
    return "It is a link in its archive, without content of its own";
  if (archive_entry_sparse_count(entry) > 0) return "It is a sparse file, whose content is not in one piece";
  if (archive_entry_size(entry) > kMaxMember) return "It has more than 1 GiB";
  return nullptr;
}

/// The content of the member whose header was read last; false when the archive is damaged in it.
bool read_content(const Handle& handle, std::vector<std::byte>& content) {
  content.clear();
  while (true) {
    const void* block = nullptr;
    std::size_t size = 0;
    la_int64_t offset = 0;
    const int status = archive_read_data_block(handle.get(), &block, &size, &offset);
    if (status == ARCHIVE_EOF) return true;
    if (status != ARCHIVE_OK) return false;
    const auto* bytes = static_cast<const std::byte*>(block);
    content.insert(content.end(), bytes, bytes + size);
  }
}

}  // namespace

std::string scan_tar(const fs::path& file,
                     const std::function<void(const TarMember&, std::span<const std::byte>)>& visit,
                     const std::function<void(const std::string& name, const std::string& reason)>& skip) {
  const Handle handle = open(file);
  std::vector<std::byte> content;
  std::string last = "its beginning";
  for (bool first = true;; first = false) {
    archive_entry* entry = nullptr;
    const int status = archive_read_next_header(handle.get(), &entry);
    if (status == ARCHIVE_EOF) return {};
    if (status != ARCHIVE_OK && status != ARCHIVE_WARN) {
      if (is_failure_to_read(handle)) fail_to_read(file, handle);
      if (first) throw core::InputError(fmt::format("{} is not a tar archive: {}.", file.string(), reason(handle)));
      return fmt::format("The archive is damaged after {}: {}.", last, reason(handle));
    }
    const char* name = archive_entry_pathname(entry);
    if (name == nullptr) {
      skip(fmt::format("the member after {}", last), "Its name is in no known encoding");
      continue;
    }
    if (const char* reason_to_skip = why_not(entry)) {
      skip(name, reason_to_skip);
      continue;
    }
    if (archive_entry_filetype(entry) != AE_IFREG) continue;
    const TarMember member{name, archive_filter_bytes(handle.get(), -1), archive_entry_size(entry)};
    if (!read_content(handle, content) || std::ssize(content) != member.length) {
      if (is_failure_to_read(handle)) fail_to_read(file, handle);
      return fmt::format("The archive is damaged in {}: {}.", member.name, reason(handle));
    }
    visit(member, content);
    last = member.name;
  }
}

}  // namespace allosaur::io
