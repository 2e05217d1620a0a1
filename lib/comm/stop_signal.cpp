#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "comm/environment.hpp"

namespace allosaur::comm {
namespace {

constexpr std::array kSignals{SIGUSR1, SIGTERM, SIGINT};
std::atomic<int> received = 0;
static_assert(std::atomic<int>::is_always_lock_free);  // all that a signal handler may touch
std::array<struct sigaction, kSignals.size()> former;

void on_signal(int number) {
  if (received.fetch_add(1) > 0) ::_exit(128 + number);
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
