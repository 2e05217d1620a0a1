#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>

namespace allosaur::io {

/// A regular file inside a tar archive.
struct TarMember {
  std::string name;
  std::int64_t begin = 0;  ///< of its content in the archive: to be read with pread, past any archive code
  std::int64_t length = 0;
};

/// Bytes: no image or label is larger. Such members are left out, as such files are refused.
inline constexpr std::int64_t kMaxMember = 1LL << 30;

/// Reads an uncompressed tar (ustar, GNU and pax, with their long names) once, from front to back, and shows every
/// regular file in it with its content, which is valid during the call. Names are only names here, and nothing is ever
/// written. `skip` is told what is left out, with the reason: links, sparse and too large files, names in no known
/// encoding. Folders and devices are passed over. Local. Returns what is wrong with the rest where the archive is
/// damaged or ends early, so that what came before can be used; "" when it is whole. Throws core::InputError naming the
/// file when it is compressed (which would forbid random access) or no tar at all; core::StorageError when it cannot be
/// opened, or reading fails.
std::string scan_tar(const std::filesystem::path& file,
                     const std::function<void(const TarMember&, std::span<const std::byte>)>& visit,
                     const std::function<void(const std::string& name, const std::string& reason)>& skip);

}  // namespace allosaur::io
