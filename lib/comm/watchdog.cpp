#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "comm/environment.hpp"
#include "comm/failure.hpp"
#include "core/error.hpp"

namespace allosaur::comm {
namespace {
using Clock = std::chrono::steady_clock;

/// So that one rank speaks: a rank that waits for others lets a stuck one speak first, and low ranks come before high
/// ones.
constexpr std::chrono::milliseconds kAfterTheCulprit{2000}, kAfterLowerRank{500};
constexpr int kLastTurn = 2;
/// When this thread has slept so long, the whole process was suspended (as Slurm does to jobs): that is no lack of
/// progress.
constexpr std::chrono::seconds kSuspended{1};
}  // namespace

struct Watchdog::Impl {
  Impl(core::Log& its_log, const Communicator& its_world, std::chrono::seconds its_limit)
      : log(its_log), world(its_world), limit(its_limit), thread([this] { run(); }) {}

  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      closing = true;
    }
    wake.notify_one();
    thread.join();
  }

  void feed() noexcept { fed = Clock::now(); }

  void run() {
    std::unique_lock lock(mutex);
    auto awake = Clock::now();
    while (!wake.wait_for(lock, std::chrono::milliseconds(100), [&] { return closing; })) {
      try {
        if (check) check();
      } catch (...) {
        abort_with(log, describe(std::current_exception()));
      }
      const auto slept = Clock::now() - std::exchange(awake, Clock::now());
      if (slept > kSuspended) feed();
      const bool waiting = world.waiting();
      if (waiting && waiting_allowed > 0) feed();
      const auto age = Clock::now() - fed.load();
      const auto patience = limit + (waiting ? kAfterTheCulprit : std::chrono::milliseconds(0)) +
                            kAfterLowerRank * std::min(world.rank(), kLastTurn);
      if (limit > std::chrono::seconds(0) && age > patience) abort_with(log, complaint(waiting, age));
    }
  }

  Failure complaint(bool waiting, Clock::duration age) const {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(age).count();
    const std::string last = world.last_collective();
    const std::string state =
        waiting ? fmt::format("it waits for another rank in {}", last)
                : fmt::format("it waits for no other rank; the last collective it entered was {}", last);
    return {static_cast<int>(core::ExitCode::peer),
            fmt::format("no progress for {} s: {}. (If work can take that long, raise run.stall_seconds.)", seconds,
                        state)};
  }

  core::Log& log;
  const Communicator& world;
  const std::chrono::seconds limit;
  std::atomic<Clock::time_point> fed = Clock::now();
  std::atomic<int> waiting_allowed = 0;
  std::mutex mutex;
  std::condition_variable wake;
  std::function<void()> check;
  bool closing = false;
  std::thread thread;  // last: it uses the others
};

Watchdog::Watchdog(core::Log& log, const Communicator& world, std::chrono::seconds limit)
    : impl_(std::make_unique<Impl>(log, world, limit)) {}

Watchdog::~Watchdog() = default;

void Watchdog::feed() noexcept {
  impl_->feed();
}

void Watchdog::watch(std::function<void()> check) {
  const std::lock_guard lock(impl_->mutex);
  impl_->check = std::move(check);
}

Watchdog::WaitingAllowed::WaitingAllowed(Watchdog& watchdog) noexcept : watchdog_(watchdog) {
  ++watchdog_.impl_->waiting_allowed;
}

Watchdog::WaitingAllowed::~WaitingAllowed() {
  watchdog_.feed();
  --watchdog_.impl_->waiting_allowed;
}

}  // namespace allosaur::comm
