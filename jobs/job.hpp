#pragma once
#include <cstdint>
#include <string_view>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "core/log.hpp"
#include "core/options.hpp"

namespace allosaur::jobs {

/// What every job is given. `world` is the control plane (MPI).
struct Context {
  comm::Communicator& world;
  const core::Options& options;
  core::Log& log;
  comm::StopSignal& stop;
  comm::Watchdog& watchdog;
  int threads;        ///< compute threads of this rank
  int node_rank = 0;  ///< number of this rank among those of its node
  /// Say what would be done, with its cost in memory, disk and work, and touch no file (`--dry-run`).
  bool dry_run = false;
};

enum class Outcome : std::uint8_t { complete, preempted };

/// A phase or tool of the program: declares its options, then runs on all ranks. A job wires parts of lib/ together and
/// computes nothing by itself.
class Job {
 public:
  virtual ~Job() = default;
  virtual std::string_view name() const = 0;
  virtual std::string_view summary() const = 0;  ///< one line for `allosaur --help`
  /// The key that a word without dashes right behind the job's name gives; "" = none does.
  virtual std::string_view argument() const { return {}; }
  virtual void declare(core::Options& options) const = 0;
  virtual Outcome run(Context& context) const = 0;
};

}  // namespace allosaur::jobs
