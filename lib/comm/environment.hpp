#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "comm/communicator.hpp"
#include "core/log.hpp"

namespace allosaur::comm {

/// MPI itself: initialised with MPI_THREAD_MULTIPLE by the constructor, finalised by the destructor; the one place that
/// does. While an exception is unwinding the destructor aborts the job instead (finalising would hang the other ranks).
/// A rank that ends while others still expect it in a collective of the world makes those throw core::PeerError, naming
/// it.
class Environment {
 public:
  Environment(int& argc, char**& argv);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  Communicator& world() noexcept;  ///< all ranks, over MPI
  int node_rank() const noexcept;  ///< rank among the ranks of this node: chooses the GPU
  int node_size() const noexcept;  ///< ranks on this node
  /// Throws core::UsageError when ranks were started as unconnected copies, or MPI lacks threads. Called by
  /// run_guarded().
  void check_launch() const;

  /// Ends the whole job from any thread, at once, with this exit code. Never returns.
  [[noreturn]] static void abort(int code) noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Set by SIGUSR1, SIGTERM or SIGINT (the handler is installed by the constructor); a second signal ends the process at
/// once. Ranks must agree before acting on it: reduce requested() with MAX in the step's own reduction.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  bool requested() const noexcept;
};

/// A thread that ends the job when feed() has not been called for `limit` (run.stall_seconds): it logs rank, host, last
/// collective and age, then aborts. A limit of 0 disables that. Ranks that wait for others speak two seconds later than
/// one that is stuck by itself, so that the message is the latter's.
class Watchdog {
 public:
  Watchdog(core::Log& log, const Communicator& world, std::chrono::seconds limit);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  void feed() noexcept;
  /// Also calls `check` several times a second, on the watchdog's thread: what it throws ends the job. For errors that
  /// devices report asynchronously (NcclCommunicator::throw_if_failed). An empty function ends it.
  void watch(std::function<void()> check);

  /// While one lives, a rank that waits for others in a collective does not count as stalled: for set-up, where one
  /// rank may work for long and the others have nothing to do. A rank that is stuck by itself still ends the job.
  class WaitingAllowed {
   public:
    explicit WaitingAllowed(Watchdog& watchdog) noexcept;
    ~WaitingAllowed();
    WaitingAllowed(const WaitingAllowed&) = delete;
    WaitingAllowed& operator=(const WaitingAllowed&) = delete;

   private:
    Watchdog& watchdog_;
  };

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Runs `body` on this rank inside the Environment's scope and turns errors into exit codes: an exception that all
/// ranks share (thrown through coordinate() on environment.world()) ends the job orderly with one message, which names
/// the lowest failing rank unless all failed alike; any other is written to the log and to stderr with rank and host,
/// and aborts all ranks. Returns the process's exit code: core::Error's, else 1.
int run_guarded(Environment& environment, core::Log& log, const std::function<int()>& body);

}  // namespace allosaur::comm
