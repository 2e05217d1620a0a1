#pragma once
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

namespace allosaur::core {

/// Scalars over steps as TensorBoard reads them: a new file `events.out.tfevents.<seconds>.<host>.<process>.<n>` in a
/// folder whose files TensorBoard shows as one run. Only rank 0 owns one. Every failure is a StorageError naming the
/// file.
class EventFile {
 public:
  /// `directory` exists. A run that is continued gives the first step it will write: TensorBoard then forgets what
  /// earlier files say of that step and later ones.
  EventFile(const std::filesystem::path& directory, std::int64_t first_step);

  /// Appends one event with all (tag, value) pairs of a step, at least 0; it is in the file when this returns. Values
  /// are rounded to float32, which is all the format holds.
  void write(std::int64_t step, std::span<const std::pair<std::string_view, double>> scalars);

 private:
  struct Close {
    void operator()(std::FILE* stream) const noexcept { std::fclose(stream); }
  };
  void append(std::string_view event);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> stream_;
};

}  // namespace allosaur::core
