#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/files.hpp"
#include "core/log.hpp"
#include "data/dataset.hpp"
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

/// The input files that could not be used, in the output directory: `rejected_<rank>.jsonl`, merged by rank 0.
class RejectedList {
 public:
  RejectedList(Context& context, std::filesystem::path directory);
  ~RejectedList();
  RejectedList(const RejectedList&) = delete;
  RejectedList& operator=(const RejectedList&) = delete;

  /// Local, for any thread. The file is in this rank's list at once, so that a rank that fails has said why. Throws
  /// core::StorageError.
  void add(const std::string& key, const std::string& reason);
  /// Local. Counts a file that is in a list already, of an earlier attempt maybe.
  void count(const std::string& key);
  /// Local: rank 0 adds what a source held that cannot be used. These are weighed against all that it held.
  void add_problems(const data::Dataset& dataset);
  /// Collective. Has rank 0 merge the lists into `rejected.jsonl`; throws core::InputError (on every rank) when more
  /// files were added, each counted once over the ranks, than `limit` of `seen`, the files tried, summed over ranks; or
  /// when problems are more than `limit` of what the sources held.
  /// (Cost per rank: one gather of 8 bytes a file.)
  void judge(std::int64_t seen, double limit);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace allosaur::jobs
