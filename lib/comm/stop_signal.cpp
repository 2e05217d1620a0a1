#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "comm/environment.hpp"

namespace allosaur::comm {
namespace {

constexpr std::array kSignals{SIGUSR1, SIGTERM, SIGINT};
// Slurm and the scripts that it runs may each pass on the same request.
constexpr std::int64_t kOneRequestMilliseconds = 1000;
std::atomic<std::int64_t> received = 0;                         // when, in milliseconds; 0: not yet
static_assert(std::atomic<std::int64_t>::is_always_lock_free);  // all that a signal handler may touch
std::array<struct sigaction, kSignals.size()> former;

void on_signal(int number) {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  const std::int64_t now = std::int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000;
  std::int64_t first = 0;
  if (!received.compare_exchange_strong(first, now) && now - first > kOneRequestMilliseconds) ::_exit(128 + number);
}

}  // namespace

StopSignal::StopSignal() {
  received = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigfillset(&action.sa_mask);
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &former[i]);
}

StopSignal::~StopSignal() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &former[i], nullptr);
}

bool StopSignal::requested() const noexcept {
  return received > 0;
}

}  // namespace allosaur::comm
