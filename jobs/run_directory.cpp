#include "jobs/run_directory.hpp"

#include <fstream>
#include <mutex>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "jobs/build_info.hpp"

namespace allosaur::jobs {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

json read_json(const fs::path& file) {
  try {
    return json::parse(core::read_text(file));
  } catch (const json::exception&) {
    throw core::StorageError(
        fmt::format("{} is damaged: it is not JSON. Remove it to start counting attempts anew.", file.string()));
  }
}

/// What the run in `path` was, if there was one; throws UsageError when it cannot be continued with these options.
int next_attempt(const fs::path& path, std::string_view job, const core::Options& options) {
  if (!fs::exists(path / "environment.json")) return 1;
  const json earlier = read_json(path / "environment.json");
  const std::string earlier_job = earlier.value("job", std::string(job));
  if (earlier_job != job) {
    throw core::UsageError(fmt::format("{} holds a run of `allosaur {}`: give `allosaur {}` another output folder.",
                                       path.string(), earlier_job, job));
  }
  const auto differences = options.differences(core::read_text(path / "config.cfg"));
  if (!differences.empty()) {
    throw core::UsageError(
        fmt::format("{} holds a run with other options, so it cannot be continued:\n  {}\nGive the former values or "
                    "another output folder.",
                    path.string(), fmt::join(differences, "\n  ")));
  }
  return earlier.value("attempt", 0) + 1;
}

/// The keys of the files listed in all `rejected_<rank>.jsonl` of this and earlier attempts, each once.
std::string merged_rejections(const fs::path& directory) {
  std::set<std::string> keys;
  std::string merged;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("rejected_") || entry.path().extension() != ".jsonl") continue;
    std::ifstream lines(entry.path());
    for (std::string line; std::getline(lines, line);) {
      const json record = json::parse(line, nullptr, false);
      if (record.is_object() && keys.insert(record.value("key", "")).second) merged += line + "\n";
    }
  }
  return merged;
}

}  // namespace

RunDirectory::RunDirectory(Context& context, std::string_view job, const fs::path& path) : path_(path) {
  attempt_ = comm::on_root(context.world, [&] {
    core::make_directory(path);
    lock_ = std::make_unique<core::DirectoryLock>(path);
    if (!lock_->held())
      context.log.warning("{} is on a file system without locks: see to it that no other run writes there.",
                          path.string());
    return next_attempt(path, job, context.options);
  });
  const std::vector<std::string> hosts = context.world.gather_all(core::host_name());
  comm::coordinate(context.world, [&] {
    if (context.world.rank() == 0) {
      const BuildInfo build = build_info();
      const json environment{{"job", job},
                             {"attempt", attempt_},
                             {"version", build.version},
                             {"revision", build.revision},
                             {"libraries", build.libraries},
                             {"ranks", context.world.size()},
                             {"hosts", hosts},
                             {"threads", context.threads}};
      core::make_directory(path / "results");
      core::write_atomically(path / "config.cfg", context.options.resolved());
      core::write_atomically(path / "environment.json", environment.dump(2) + "\n");
      metrics_ = std::make_unique<core::MetricsLog>(path / "metrics.jsonl", attempt_);
    }
    context.log.open(path);
  });
  context.log.event(
      "start", {{"job", job}, {"attempt", attempt_}, {"host", hosts[static_cast<std::size_t>(context.world.rank())]}});
}

void declare_process_options(core::Options& options) {
  using core::OptionKind;
  options.section("Process");
  options
      .add("log-level", "info", "debug, info, warning or error: what is printed (the files get everything)",
           OptionKind::free)
      .one_of({"debug", "info", "warning", "error"});
  options
      .add("threads", 0, "compute threads of a rank; 0: the cores it may use, shared with the other ranks of its node",
           OptionKind::free)
      .at_least(0)
      .fits_int();
  options
      .add("run.stall_seconds", 300, "end the job when a rank makes no progress for this long; 0: never",
           OptionKind::free)
      .within(0, 1e9);
}

void declare_run_options(core::Options& options) {
  using core::OptionKind;
  options.section("Run");
  options.add_required("output", "folder for everything this run writes; the same command again continues there",
                       OptionKind::free);
  options
      .add("run.max_rejected", 0.1, "share of the input files that may be unusable before the job fails",
           OptionKind::free)
      .within(0, 1);
  declare_process_options(options);
}

struct RejectedList::Impl {
  Context& context;
  fs::path directory, file;
  std::mutex mutex{};  // of what follows
  std::ofstream lines{};
  std::vector<std::uint64_t> added{};   // hashes of keys
  std::int64_t problems = 0, held = 0;  // of sources, on every rank; `held`: with the images

  void write(const std::string& key, const std::string& reason) {
    if (!lines.is_open()) lines.open(file, std::ios::app);
    const json record{{"key", key}, {"reason", reason}};
    lines << record.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
    if (!lines) throw core::StorageError(fmt::format("Cannot write {}.", file.string()));
  }

  /// Collective. Files added on any rank, each counted once.
  std::int64_t total() const {
    comm::Communicator& world = context.world;
    const std::vector<std::int64_t> counts = world.gather_all(static_cast<std::int64_t>(added.size()));
    std::vector<std::uint64_t> all(static_cast<std::size_t>(std::accumulate(counts.begin(), counts.end(), 0LL)));
    world.all_gather_counts(std::span(added), std::span(all), counts);
    return std::ssize(std::set(all.begin(), all.end()));
  }
};

RejectedList::RejectedList(Context& context, fs::path directory)
    : impl_(new Impl{context, directory, directory / fmt::format("rejected_{:05}.jsonl", context.world.rank())}) {}
RejectedList::~RejectedList() = default;

void RejectedList::add(const std::string& key, const std::string& reason) {
  const std::lock_guard lock(impl_->mutex);
  impl_->write(key, reason);
  impl_->added.push_back(core::hash_text(key));
}

void RejectedList::count(const std::string& key) {
  const std::lock_guard lock(impl_->mutex);
  impl_->added.push_back(core::hash_text(key));
}

void RejectedList::add_problems(const data::Dataset& dataset) {
  const std::vector<data::Rejected> problems = dataset.problems();
  impl_->problems += std::ssize(problems);
  impl_->held += dataset.size() + std::ssize(problems);
  if (impl_->context.world.rank() != 0) return;
  const std::lock_guard lock(impl_->mutex);
  for (const data::Rejected& problem : problems) impl_->write(problem.key, problem.reason);
}
void RejectedList::judge(std::int64_t seen, double limit) {
  comm::Communicator& world = impl_->context.world;
  const std::int64_t broken = impl_->total(), tried = world.sum(seen);
  const std::int64_t problems = impl_->problems;
  if (broken + problems == 0) return;
  const fs::path list = impl_->directory / "rejected.jsonl";
  comm::coordinate(world, [&] {
    if (world.rank() == 0) core::write_atomically(list, merged_rejections(impl_->directory));
  });
  const auto summary = [&](std::int64_t unusable, std::int64_t of) {
    return fmt::format("{} of {} input files could not be used; {} lists them with the reasons", unusable, of,
                       list.string());
  };
  comm::coordinate(world, [&] {
    for (const auto& [unusable, of] : {std::pair(broken, tried), std::pair(problems, impl_->held)}) {
      if (static_cast<double>(unusable) <= limit * static_cast<double>(of)) continue;
      throw core::InputError(
          fmt::format("{}. That is more than run.max_rejected = {} allows.", summary(unusable, of), limit));
    }
  });
  if (world.rank() == 0) impl_->context.log.warning("{}.", summary(broken + problems, tried + problems));
}

}  // namespace allosaur::jobs
