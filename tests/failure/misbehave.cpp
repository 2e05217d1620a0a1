// A job of many small collectives in which one rank misbehaves. Arguments: what it does, and the rank that does it.
#include <signal.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "comm/coordinate.hpp"
#include "comm/environment.hpp"
#include "core/error.hpp"

namespace {

using namespace allosaur;

constexpr int kIterations = 1000, kBadIteration = 100;

/// What the culprit does in the middle of the job. Returns true when it is to leave the job's body.
bool misbehave(const std::string& what, comm::Communicator& world, comm::Watchdog& watchdog,
               std::array<double, 100>& data) {
  if (what == "throw") throw core::InputError("a picture is missing.");
  if (what == "throw-foreign") throw std::runtime_error("an assumption does not hold.");
  if (what == "throw-in-flight") {
    const comm::Request request = world.start_all_reduce(std::span(data), comm::ReduceOp::sum);
    throw core::NumericalError("a loss is not finite.");
  }
  if (what == "return") return true;
  if (what == "exit") std::_Exit(7);
  if (what == "exit-zero") std::_Exit(0);
  if (what == "kill") ::raise(SIGKILL);
  if (what == "stop") ::raise(SIGSTOP);
  if (what == "work-in-set-up") {
    for (int i = 0; i < 48; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      watchdog.feed();
    }
    throw core::InputError("a picture is missing.");
  }
  if (what == "stall" || what == "stall-in-set-up") std::this_thread::sleep_for(std::chrono::hours(1));
  if (what == "other-collective") world.barrier();
  if (what == "two-signals") {
    ::raise(SIGUSR1);
    ::raise(SIGUSR1);  // the same request, passed on by another
    std::this_thread::sleep_for(std::chrono::milliseconds(1200));
    ::raise(SIGUSR1);
  }
  return false;
}

int job(comm::Communicator& world, core::Log& log, const std::string& what, int culprit) {
  comm::Watchdog watchdog(log, world, std::chrono::seconds(2));
  const comm::StopSignal stop;
  std::array<double, 100> data{};
  std::optional<comm::Watchdog::WaitingAllowed> waiting_allowed;
  if (what.ends_with("in-set-up")) waiting_allowed.emplace(watchdog);
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    watchdog.feed();
    const bool now = iteration == kBadIteration && world.rank() == culprit;
    if (what == "coordinated") {
      comm::coordinate(world, [&] {
        if (now) throw core::StorageError("the disk is full.");
      });
    } else if (what == "alike") {
      comm::coordinate(world, [&] {
        if (iteration == kBadIteration) throw core::UsageError("unknown key optim.l.");
      });
    } else if (now && misbehave(what, world, watchdog, data)) {
      return 0;
    }
    world.all_reduce(std::span(data), comm::ReduceOp::sum);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  comm::Environment environment(argc, argv);
  core::Log log(environment.world().rank(), core::Level::info);
  const std::string what = argv[1];
  const int culprit = std::stoi(argv[2]);
  return comm::run_guarded(environment, log, [&] { return job(environment.world(), log, what, culprit); });
}
