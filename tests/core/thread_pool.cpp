#include "core/thread_pool.hpp"

#include <atomic>
#include <stdexcept>
#include <vector>

#include "testing.hpp"

using allosaur::core::available_cores;
using allosaur::core::parallel_for;

TEST_CASE("parallel_for: every index once, on any number of threads") {
  for (const int threads : {1, 3, 50}) {
    std::vector<std::atomic<int>> visits(200);
    parallel_for(threads, 200, [&](std::int64_t i) { ++visits[static_cast<std::size_t>(i)]; });
    for (const auto& count : visits) CHECK(count == 1);
  }
  parallel_for(4, 0, [](std::int64_t) { throw std::logic_error("no index"); });
  CHECK(available_cores() >= 1);
}

TEST_CASE("parallel_for: an exception stops the rest and leaves") {
  std::atomic<int> calls = 0;
  CHECK_THROWS_WITH(parallel_for(4, 1'000'000,
                                 [&](std::int64_t i) {
                                   ++calls;
                                   if (i == 10) throw std::runtime_error("index 10");
                                 }),
                    "index 10");
  CHECK(calls < 1'000'000);
}
