#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>

#include <fmt/format.h>
#include <nlohmann/json_fwd.hpp>

namespace allosaur::core {

enum class Level : std::uint8_t { debug, info, warning, error };

Level level_of(std::string_view name);  ///< of "debug", "info", "warning", "error"; nothing else

/// The log of one rank. Rank 0 prints text for people (stdout; warnings and errors to stderr) and, once a run directory
/// is known, appends it to `log.txt`; every rank appends every record to `logs/rank_NNNNN.jsonl`. Thread-safe.
class Log {
 public:
  Log(int rank, Level level);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  /// From now on also write below `run_directory` (which exists). Throws StorageError.
  void open(const std::filesystem::path& run_directory);
  void set_level(Level level) noexcept { level_ = level; }

  template <class... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::info, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::warning, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    write(Level::error, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) {
    if (level_ == Level::debug) write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
  }
  void write(Level level, std::string_view text);
  /// A record with fields, to the rank's file only.
  void event(std::string_view name, const nlohmann::json& fields);
  /// Rank 0 on a terminal: a line that stays below everything printed, until the next call; empty removes it.
  void status(std::string_view line);
  void flush();
  int rank() const noexcept { return rank_; }
  bool on_terminal() const noexcept;  ///< whether a person sees rank 0's output as it is written

 private:
  struct State;
  int rank_;
  std::atomic<Level> level_;
  std::unique_ptr<State> state_;
};

class EventFile;

/// `metrics.jsonl`: one JSON object a line, appended; only rank 0 owns one. NaN and infinities are written as strings.
class MetricsLog {
 public:
  /// Opens for appending, and removes the half line that a killed run may have left; `attempt` counts the starts of
  /// this run and is added to every line with a time stamp. Throws StorageError, as write() does.
  explicit MetricsLog(const std::filesystem::path& file, int attempt);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  /// From now on the numbers of lines with an `iteration` also become TensorBoard scalars in `directory`, named
  /// `<phase>/<field>` (phase "train" where a line names none). `first`: the first iteration that will be written.
  void show_in_tensorboard(const std::filesystem::path& directory, std::int64_t first);
  void write(const nlohmann::json& fields);

 private:
  struct File;
  std::unique_ptr<File> file_;
  std::unique_ptr<EventFile> events_;
  int attempt_;
};

/// Progress of a loop on rank 0: on a terminal a bar that rewrites itself, elsewhere a plain line every few seconds.
class Progress {
 public:
  /// `log` prints plain lines; a rank other than 0 shows nothing. `unit`: what is counted ("images", "iterations").
  /// `first`: how much was done before, when a loop is continued.
  Progress(Log& log, std::string_view title, std::int64_t total, std::string_view unit, std::int64_t first = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// `done` of total so far; `note` stands at the end of the line (loss, share of time waiting for data).
  void update(std::int64_t done, std::string_view note = {});
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace allosaur::core
