#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/files.hpp"
#include "core/log.hpp"
#include "jobs/job.hpp"

namespace allosaur::jobs {

/// The output directory of a job: `config.cfg`, `environment.json`, `metrics.jsonl`, `log.txt`, `logs/`, `results/`,
/// `lock`.
class RunDirectory {
 public:
  /// Collective. Creates or re-opens `path`: takes the lock (refused while another run holds it), refuses a changed
  /// `fixed` option with the differences printed, writes config.cfg and environment.json, opens the log, and counts the
  /// attempt.
  RunDirectory(Context& context, std::string_view job, const std::filesystem::path& path);

  const std::filesystem::path& path() const noexcept { return path_; }
  int attempt() const noexcept { return attempt_; }
  core::MetricsLog* metrics() noexcept { return metrics_.get(); }  ///< rank 0 only, else nullptr
  bool existed() const noexcept { return attempt_ > 1; }

 private:
  std::filesystem::path path_;
  int attempt_ = 1;
  std::unique_ptr<core::DirectoryLock> lock_;
  std::unique_ptr<core::MetricsLog> metrics_;
};

/// Declares the options every job has, which the program itself reads: `log-level`, `threads`, `run.stall_seconds`. For
/// a job without an output directory; the others call declare_run_options().
void declare_process_options(core::Options& options);

/// Declares the options every job with an output directory has: those above, `output` and `run.max_rejected`.
void declare_run_options(core::Options& options);

struct RejectedFile {
  std::string key, reason;
};

/// Collective. Appends this rank's rejected files to `rejected_<rank>.jsonl` and has rank 0 merge them into
/// `rejected.jsonl`; throws core::InputError (on every rank) when they are more than `limit` of `seen`, the files that
/// this rank has tried, both summed over ranks.
void report_rejected(Context& context, const std::filesystem::path& directory,
                     const std::vector<RejectedFile>& rejected, std::int64_t seen, double limit);

}  // namespace allosaur::jobs
