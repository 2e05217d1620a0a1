#include "data/kept_indexes.hpp"

#include <chrono>
#include <utility>

#include <fmt/format.h>

#include "core/files.hpp"
#include "data/unique.hpp"

namespace allosaur::data {

namespace fs = std::filesystem;

KeptIndexes::KeptIndexes(fs::path folder, const fs::path& source)
    : folder_(std::move(folder)),
      prefix_(fmt::format("{}-{}", source.stem().string(), core::hash_hex(core::hash_text(source.native())))) {}

fs::path KeptIndexes::newest() const {
  fs::path newest;
  fs::file_time_type newest_time;
  visit([&](const fs::path& file, fs::file_time_type time) {
    if (file.extension() != ".h5" || (!newest.empty() && time <= newest_time)) return;
    newest = file;
    newest_time = time;
  });
  return newest;
}

fs::path KeptIndexes::add(const IndexRows& rows) const {
  fs::path file = folder_ / fmt::format("{}-{}.h5", prefix_, unique_digits());
  Index::write(rows, file);
  return file;
}

void KeptIndexes::mark_opened(const fs::path& file) {
  std::error_code of_another_user;
  fs::last_write_time(file, fs::file_time_type::clock::now(), of_another_user);
}

void KeptIndexes::remove_forgotten() const {
  constexpr std::chrono::hours kForgotten{30 * 24};
  visit([&](const fs::path& file, fs::file_time_type time) {
    std::error_code of_another_user;
    if (time < fs::file_time_type::clock::now() - kForgotten) fs::remove(file, of_another_user);
  });
}

void KeptIndexes::visit(const std::function<void(const fs::path&, fs::file_time_type)>& show) const {
  std::error_code error;
  for (fs::directory_iterator files(folder_, error); !error && files != fs::directory_iterator();
       files.increment(error)) {
    if (!files->path().filename().string().starts_with(prefix_)) continue;
    std::error_code gone;
    const fs::file_time_type time = fs::last_write_time(files->path(), gone);
    if (!gone) show(files->path(), time);
  }
}

}  // namespace allosaur::data
