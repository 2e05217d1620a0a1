// Runs recorded iterations of the official implementation through the production step and compares.
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/environment.hpp"
#include "core/error.hpp"
#include "core/log.hpp"
#include "replay/replay.hpp"

using namespace allosaur;

namespace {

constexpr const char* kUsage =
    "usage: replay_step DIR [--tolerance-report]\n"
    "Prints a JSON line for each quantity of the recorded iterations in DIR: ours, theirs, the relative difference "
    "and\n"
    "the tolerance; with --tolerance-report also the worst of each kind, in shares of its tolerance. Exits with 1 "
    "when\n"
    "a tolerance is exceeded.\n";

int run(comm::Environment& environment, const std::string& folder, bool with_report) {
  int exceeded = 0;
  std::map<std::string, testing::Quantity> worst;
  testing::replay(environment.world(), folder, [&](const testing::Quantity& q) {
    fmt::print("{}\n", nlohmann::json{{"kind", q.kind},
                                      {"quantity", q.name},
                                      {"ours", q.ours},
                                      {"theirs", q.theirs},
                                      {"difference", q.difference},
                                      {"tolerance", q.tolerance},
                                      {"good", q.good()}}
                           .dump());
    if (!q.good()) ++exceeded;
    const auto share = [](const testing::Quantity& x) { return x.difference / x.tolerance; };
    if (const auto [place, added] = worst.emplace(q.kind, q); !added && !(share(q) <= share(place->second)))
      place->second = q;
  });
  if (with_report)
    for (const auto& [kind, q] : worst)
      fmt::print("{}\n",
                 nlohmann::json{{"worst", kind}, {"quantity", q.name}, {"share", q.difference / q.tolerance}}.dump());
  return exceeded > 0 ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const bool with_report = argc == 3 && std::strcmp(argv[2], "--tolerance-report") == 0;
  if (argc < 2 || (argc == 3 && !with_report) || argc > 3 || argv[1][0] == '-') {
    std::fputs(kUsage, stderr);
    return static_cast<int>(core::ExitCode::usage);
  }
  comm::Environment environment(argc, argv);
  core::Log log(environment.world().rank(), core::Level::info);
  return comm::run_guarded(environment, log, [&] { return run(environment, argv[1], with_report); });
}
