#include "comm/environment.hpp"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "testing.hpp"

namespace allosaur::comm {

TEST_CASE("stop signal: set by any of its signals, on the rank that gets it") {
  for (const int number : {SIGUSR1, SIGTERM, SIGINT}) {
    const StopSignal stop;
    CHECK(!stop.requested());
    if (testing::world().rank() == 0) ::raise(number);
    CHECK(stop.requested() == (testing::world().rank() == 0));
    CHECK(testing::world().max(stop.requested() ? 1 : 0) == 1);
  }
}

TEST_CASE("watchdog: silent while it is fed, and calls what it is to watch") {
  std::atomic<int> calls = 0;
  Watchdog watchdog(testing::log(), testing::world(), std::chrono::seconds(1));
  watchdog.watch([&] { ++calls; });
  for (int i = 0; i < 6; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    watchdog.feed();
  }
  CHECK(calls > 2);
  watchdog.watch({});
}

}  // namespace allosaur::comm
