#include "core/log.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/event_file.hpp"
#include "core/files.hpp"

namespace allosaur::core {

namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kEraseLine = "\r\x1b[K";
constexpr std::array<std::string_view, 4> kLevelNames{"debug", "info", "warning", "error"};

std::string_view name_of(Level level) {
  return kLevelNames[static_cast<std::size_t>(level)];
}

/// UTC, as 2025-01-31T12:00:00.000Z.
std::string time_stamp() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  ::gmtime_r(&seconds, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec, milliseconds);
}

/// JSON knows no NaN and no infinity: they become strings.
void quote_non_finite(nlohmann::json& value) {
  if (value.is_structured()) {
    for (auto& element : value) quote_non_finite(element);
  } else if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    value = fmt::format("{}", value.get<double>());
  }
}

std::string json_line(nlohmann::json record) {
  quote_non_finite(record);
  return record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

/// A stdio stream that is flushed with every line, so that a killed rank's last words are in the file.
class LineFile {
 public:
  explicit LineFile(const std::filesystem::path& file) : path_(file), stream_(std::fopen(file.c_str(), "ae")) {
    if (stream_ == nullptr) fail(errno);
  }
  ~LineFile() { std::fclose(stream_); }
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;

  bool try_write(std::string_view line) noexcept {
    return std::fwrite(line.data(), 1, line.size(), stream_) == line.size() && std::fflush(stream_) == 0;
  }
  void write(std::string_view line) {
    if (!try_write(line)) fail(errno);
  }

 private:
  [[noreturn]] void fail(int error) const {
    throw StorageError(fmt::format("Cannot write {}: {}.", path_.string(), std::generic_category().message(error)));
  }
  std::filesystem::path path_;
  std::FILE* stream_;
};

/// Launchers such as mpirun give every rank a terminal of its own and forward what it prints: what counts is where the
/// parent's output goes, too.
bool stdout_is_terminal() {
  if (::isatty(STDOUT_FILENO) == 0) return false;
  const int parent = ::open(fmt::format("/proc/{}/fd/1", ::getppid()).c_str(), O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (parent < 0) return false;
  const bool terminal = ::isatty(parent) == 1;
  ::close(parent);
  return terminal;
}

}  // namespace

Level level_of(std::string_view name) {
  for (std::size_t i = 0; i < kLevelNames.size(); ++i) {
    if (kLevelNames[i] == name) return static_cast<Level>(i);
  }
  throw std::logic_error(fmt::format("'{}' is no level of a log", name));
}

struct Log::State {
  std::mutex mutex;
  std::unique_ptr<LineFile> text, records;
  std::string status;
  bool terminal = false;

  void print(std::FILE* stream, const std::string& line) {
    if (!status.empty()) std::fputs(kEraseLine, stdout);
    std::fputs((line + "\n").c_str(), stream);
    std::fflush(stream);
    std::fputs(status.c_str(), stdout);
    std::fflush(stdout);
  }
};

Log::Log(int rank, Level level) : rank_(rank), level_(level), state_(std::make_unique<State>()) {
  state_->terminal = rank == 0 && stdout_is_terminal();
}

Log::~Log() {
  status({});
}

bool Log::on_terminal() const noexcept {
  return state_->terminal;
}

void Log::open(const std::filesystem::path& run_directory) {
  make_directory(run_directory / "logs");
  const std::lock_guard lock(state_->mutex);
  state_->records = std::make_unique<LineFile>(run_directory / "logs" / fmt::format("rank_{:05}.jsonl", rank_));
  if (rank_ == 0) state_->text = std::make_unique<LineFile>(run_directory / "log.txt");
}

void Log::write(Level level, std::string_view text) {
  const std::string time = time_stamp();
  const std::lock_guard lock(state_->mutex);
  if (state_->records) {
    state_->records->try_write(
        json_line({{"time", time}, {"rank", rank_}, {"level", name_of(level)}, {"event", "text"}, {"text", text}}));
  }
  if (rank_ != 0 || level < level_) return;
  const bool problem = level >= Level::warning;
  state_->print(problem ? stderr : stdout, problem ? fmt::format("{}: {}", name_of(level), text) : std::string(text));
  if (state_->text) state_->text->try_write(fmt::format("{} {:7} {}\n", time, name_of(level), text));
}

void Log::event(std::string_view name, const nlohmann::json& fields) {
  const std::lock_guard lock(state_->mutex);
  if (!state_->records) return;
  state_->records->try_write(
      json_line({{"time", time_stamp()}, {"rank", rank_}, {"level", "info"}, {"event", name}, {"fields", fields}}));
}

void Log::status(std::string_view line) {
  const std::lock_guard lock(state_->mutex);
  if (!state_->terminal || (line.empty() && state_->status.empty())) return;
  winsize window{};
  ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &window);
  state_->status = line.substr(0, window.ws_col > 0 ? window.ws_col - 1u : 79u);
  std::fputs((kEraseLine + state_->status).c_str(), stdout);
  std::fflush(stdout);
}

void Log::flush() {
  std::fflush(stdout);
  std::fflush(stderr);
}

struct MetricsLog::File : LineFile {
  using LineFile::LineFile;
};

MetricsLog::MetricsLog(const std::filesystem::path& file, int attempt) : attempt_(attempt) {
  if (std::filesystem::is_regular_file(file)) {
    const std::string text = read_text(file);
    std::error_code error;
    std::filesystem::resize_file(file, text.rfind('\n') + 1, error);  // npos + 1 is 0
    if (error) throw StorageError(fmt::format("Cannot shorten {}: {}.", file.string(), error.message()));
  }
  file_ = std::make_unique<File>(file);
}

MetricsLog::~MetricsLog() = default;

void MetricsLog::show_in_tensorboard(const std::filesystem::path& directory, std::int64_t first) {
  make_directory(directory);
  events_ = std::make_unique<EventFile>(directory, first);
}

void MetricsLog::write(const nlohmann::json& fields) {
  if (const auto iteration = fields.find("iteration"); events_ && iteration != fields.end()) {
    const std::string phase = fields.value("phase", "train");
    std::vector<std::pair<std::string, double>> named;
    for (const auto& [key, value] : fields.items())
      if (value.is_number() && key != "iteration") named.emplace_back(phase + "/" + key, value.get<double>());
    events_->write(iteration->get<std::int64_t>(),
                   std::vector<std::pair<std::string_view, double>>(named.begin(), named.end()));
  }
  nlohmann::json record = fields;
  record["time"] = time_stamp();
  record["attempt"] = attempt_;
  file_->write(json_line(std::move(record)));
}

struct Progress::State {
  Log& log;
  std::string title, unit;
  std::int64_t total, first;  // first: where a continued loop began
  std::int64_t done = first;
  Clock::time_point start = Clock::now(), shown = start;

  std::string line(std::string_view note) const;
};

namespace {

std::string clock_time(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds);
  return whole < 3600 ? fmt::format("{}:{:02}", whole / 60, whole % 60)
                      : fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

}  // namespace

std::string Progress::State::line(std::string_view note) const {
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  const double rate = static_cast<double>(done - first) / std::max(seconds, 1e-9);
  const double share = total > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(total)) : 1.0;
  const std::string counts = fmt::format("{:3.0f}% {}/{}", 100 * share, done, total);
  const std::string left = rate > 0 ? clock_time(static_cast<double>(total - done) / rate) + " left" : "";
  const std::string end = note.empty() ? std::string() : fmt::format("  {}", note);
  if (!log.on_terminal()) return fmt::format("{} {} {}, {:.3g}/s, {}{}", title, counts, unit, rate, left, end);
  constexpr int kBarWidth = 12;
  const int filled = static_cast<int>(share * kBarWidth);
  return fmt::format("{} [{:=<{}}{: <{}}] {} {:.3g}/s {}{}", title, "", filled, "", kBarWidth - filled, counts, rate,
                     left, end);
}

Progress::Progress(Log& log, std::string_view title, std::int64_t total, std::string_view unit, std::int64_t first) {
  if (log.rank() == 0) state_.reset(new State{log, std::string(title), std::string(unit), total, first});
}

Progress::~Progress() {
  if (state_) state_->log.status({});
}

void Progress::update(std::int64_t done, std::string_view note) {
  if (!state_) return;
  state_->done = done;
  const auto now = Clock::now();
  if (state_->log.on_terminal()) {
    if (now - state_->shown < std::chrono::milliseconds(100)) return;
    state_->log.status(state_->line(note));
  } else {
    if (now - state_->shown < std::chrono::seconds(5)) return;
    state_->log.info("{}", state_->line(note));
  }
  state_->shown = now;
}

void Progress::finish() {
  if (!state_) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - state_->start).count();
  state_->log.status({});
  state_->log.info("{}: {} {} in {}", state_->title, state_->done, state_->unit, clock_time(seconds));
}

}  // namespace allosaur::core
