#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "comm/environment.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/log.hpp"
#include "core/memory.hpp"
#include "core/options.hpp"
#include "core/thread_pool.hpp"
#include "jobs/build_info.hpp"
#include "jobs/curate/curate.hpp"
#include "jobs/demo/demo.hpp"
#include "jobs/evaluate/evaluate.hpp"
#include "jobs/export/export.hpp"
#include "jobs/inspect/inspect.hpp"
#include "jobs/job.hpp"
#include "jobs/pack/pack.hpp"
#include "jobs/pipeline/pipeline.hpp"
#include "jobs/pretrain/pretrain.hpp"

namespace {

using namespace allosaur;

using JobTable = std::vector<std::unique_ptr<jobs::Job>>;

/// Every job of the program, in the order in which a user meets them.
JobTable all_jobs() {
  JobTable table;
  table.push_back(jobs::make_demo_job());
  table.push_back(jobs::make_inspect_job());
  table.push_back(jobs::make_pack_job());
  table.push_back(jobs::make_curate_job());
  table.push_back(jobs::make_pretrain_job());
  table.push_back(jobs::make_evaluate_job());
  table.push_back(jobs::make_export_job());
  table.push_back(jobs::make_pipeline_job());
  return table;
}

/// `allosaur JOB [--config FILE] [--print-config] [--dry-run] [--help] [--version] [--key=value ...]`.
struct CommandLine {
  std::string job;
  std::optional<std::string> config;
  bool help = false, version = false, print_config = false, dry_run = false;
  std::vector<std::string> flags;  ///< what is left for the job's options
};

CommandLine split(const std::vector<std::string>& arguments) {
  constexpr std::string_view kConfig = "--config=";
  CommandLine line;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "--help" || argument == "-h") {
      line.help = true;
    } else if (argument == "--version") {
      line.version = true;
    } else if (argument == "--print-config") {
      line.print_config = true;
    } else if (argument == "--dry-run") {
      line.dry_run = true;
    } else if (argument == "--config") {
      line.config = i + 1 < arguments.size() ? arguments[++i] : "";
    } else if (argument.starts_with(kConfig)) {
      line.config = argument.substr(kConfig.size());
    } else if (line.job.empty() && line.flags.empty() && !argument.starts_with("-")) {
      line.job = argument;
    } else {
      line.flags.push_back(argument);
    }
  }
  return line;
}

const jobs::Job& find_job(const JobTable& table, std::string_view name) {
  const auto found = std::ranges::find(table, name, [](const auto& job) { return job->name(); });
  if (found != table.end()) return **found;
  throw core::UsageError(name.empty() ? "No job was named (it comes before its options); `allosaur --help` lists them."
                                      : fmt::format("There is no job '{}'; `allosaur --help` lists them.", name));
}

std::string version_text() {
  const jobs::BuildInfo build = jobs::build_info();
  return fmt::format("allosaur {} ({}; {})\n", build.version, build.revision, build.libraries);
}

std::string help_text(const JobTable& table, std::string_view job_name) {
  constexpr std::string_view kUsage =
      "Usage: mpirun -n RANKS allosaur {} [--config FILE] [--key=value ...] [--print-config | --dry-run]\n\n";
  if (job_name.empty()) {
    std::string text = "allosaur curates images, pretrains a vision transformer on them and evaluates its features.\n" +
                       fmt::format(kUsage, "JOB") + "Jobs:\n";
    for (const auto& job : table) text += fmt::format("  {:10} {}\n", job->name(), job->summary());
    return text + "\n`allosaur JOB --help` lists the options of a job; `allosaur --version` tells the version.\n";
  }
  const jobs::Job& job = find_job(table, job_name);
  core::Options options;
  job.declare(options);
  return fmt::format("{}: {}\n", job.name(), job.summary()) + fmt::format(kUsage, job.name()) +
         "The keys below stand in the file (`key = value`, with `[section]` lines if you like) or behind -- among the\n"
         "flags, which win. --print-config prints the values that result, --dry-run what would be done.\n" +
         options.help();
}

/// Whether a launcher started this process as its first, or none did.
bool is_first_process() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::string_view(rank) == "0";
  }
  return true;
}

/// The cores this rank may use, shared fairly among the ranks of its node that may use the same ones.
int default_threads(comm::Environment& environment) {
  std::ifstream status("/proc/self/status");
  std::string mine = core::host_name() + " ";
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("Cpus_allowed:")) mine += line;
  }
  const auto everybody = environment.world().gather_all(mine);
  return std::max(1, core::available_cores() / static_cast<int>(std::ranges::count(everybody, mine)));
}

std::string read_config(comm::Communicator& world, const std::string& file) {
  return comm::on_root(world, [&] {
    try {
      return core::read_text(file);
    } catch (const core::InputError& error) {
      throw core::UsageError(fmt::format("--config: {}", error.what()));
    }
  });
}

int run(comm::Environment& environment, core::Log& log, const JobTable& table, const CommandLine& line) {
  comm::Communicator& world = environment.world();
  core::Options options;
  const jobs::Job* job = nullptr;
  comm::coordinate(world, [&] {
    job = &find_job(table, line.job);
    job->declare(options);
    if (line.config == "") throw core::UsageError("--config lacks the name of a file: give one, or leave it out.");
  });
  const std::string config = line.config ? read_config(world, *line.config) : "";
  comm::coordinate(world, [&] {
    std::vector<std::string> flags = line.flags;
    if (!job->argument().empty() && !flags.empty() && !flags.front().starts_with("-")) {
      flags.front() = fmt::format("--{}={}", job->argument(), flags.front());
    }
    options.parse(flags, config, line.config.value_or(""));
    log.set_level(core::level_of(options.text("log-level")));
  });
  if (line.print_config) {
    if (world.rank() == 0) fmt::print("{}", options.resolved());
    return 0;
  }
  const int chosen = options.small_integer("threads");
  const int threads = chosen > 0 ? chosen : default_threads(environment);
  at::set_num_threads(threads);
  at::set_num_interop_threads(1);

  comm::StopSignal stop;
  comm::Watchdog watchdog(log, world, std::chrono::seconds(options.integer("run.stall_seconds")));
  jobs::Context context{world, options, log, stop, watchdog, threads, environment.node_rank(), line.dry_run};
  const jobs::Outcome outcome = job->run(context);
  return static_cast<int>(outcome == jobs::Outcome::complete ? core::ExitCode::done : core::ExitCode::preempted);
}

}  // namespace

int main(int argc, char** argv) {
  const CommandLine line = split({argv + 1, argv + argc});
  const JobTable table = all_jobs();
  try {
    // Answered without MPI, which a cluster's login node may not have; under a launcher by one process only.
    if (line.help || line.version) {
      const std::string text = line.version ? version_text() : help_text(table, line.job);
      if (is_first_process()) fmt::print("{}", text);
      return 0;
    }
  } catch (const core::Error& error) {
    if (!is_first_process()) return 0;  // a launcher ends the others at the first failure: this one is to speak
    fmt::print(stderr, "error: {}\n", error.what());
    return static_cast<int>(error.code());
  }
  core::keep_freed_memory();
  comm::Environment environment(argc, argv);
  core::Log log(environment.world().rank(), core::Level::info);
  return comm::run_guarded(environment, log, [&] { return run(environment, log, table, line); });
}
