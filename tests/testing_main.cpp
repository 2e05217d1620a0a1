#define DOCTEST_CONFIG_IMPLEMENT
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <streambuf>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "comm/coordinate.hpp"
#include "comm/environment.hpp"
#include "testing.hpp"

namespace allosaur::testing {
namespace {

/// Passes whole lines on to stderr with the rank before them, until it is muted.
class PrefixedLines final : public std::streambuf {
 public:
  explicit PrefixedLines(int rank) : prefix_(fmt::format("rank {} | ", rank)) {}
  void mute() { muted_ = true; }

 private:
  int_type overflow(int_type character) override {
    if (traits_type::eq_int_type(character, traits_type::eof())) return traits_type::not_eof(character);
    line_ += traits_type::to_char_type(character);
    if (line_.back() == '\n') {
      if (!muted_) std::cerr << prefix_ + line_ << std::flush;
      line_.clear();
    }
    return character;
  }

  std::string prefix_, line_;
  bool muted_ = false;
};

/// What the test process owns; exists while main runs.
struct Session {
  Session(int& argc, char**& argv)
      : environment(argc, argv),
        log(environment.world().rank(), core::Level::warning),
        verdicts(environment.world().split(0, environment.world().rank())),
        watchdog(log, environment.world(), std::chrono::seconds(100)),
        lines(environment.world().rank()) {}

  comm::Environment environment;
  core::Log log;
  std::unique_ptr<comm::Communicator>
      verdicts;  // a group of its own: a case that left world() out of step must not disturb it
  comm::Watchdog watchdog;
  PrefixedLines lines;
  std::vector<std::string> failures;
};
Session* session = nullptr;

/// Tells rank 0 which ranks failed each case, and the watchdog that the tests are alive.
struct RankListener final : doctest::IReporter {
  explicit RankListener(const doctest::ContextOptions&) {}

  void test_case_start(const doctest::TestCaseData& test) override {
    name_ = test.m_name;
    session->watchdog.feed();
  }
  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    session->watchdog.feed();
    const auto verdicts = session->verdicts->gather_all(stats.testCaseSuccess ? std::int64_t{0} : std::int64_t{1});
    std::vector<std::size_t> failed;
    for (std::size_t rank = 0; rank < verdicts.size(); ++rank)
      if (verdicts[rank] != 0) failed.push_back(rank);
    if (!failed.empty())
      session->failures.push_back(fmt::format("FAILED on rank {}: {}", fmt::join(failed, ", "), name_));
  }
  void test_run_end(const doctest::TestRunStats&) override { session->lines.mute(); }

  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}

 private:
  std::string name_;
};
REGISTER_LISTENER("rank", 0, RankListener);

int run(int argc, char** argv) {
  doctest::Context context(argc, argv);
  context.setOption("no-colors",
                    true);  // mpirun's ranks have terminals of their own: doctest cannot know where its text goes
  std::ostream prefixed(&session->lines);
  if (world().rank() != 0) {
    context.setOption("minimal", true);
    context.setCout(&prefixed);
  }
  const int verdict = context.run();
  if (world().rank() == 0)
    for (const auto& failure : session->failures) std::cout << failure << std::endl;
  return static_cast<int>(world().max(session->failures.empty() ? verdict : EXIT_FAILURE));
}

}  // namespace

comm::Communicator& world() {
  return session->environment.world();
}

core::Log& log() {
  return session->log;
}

std::filesystem::path data_directory() {
  return ALLOSAUR_TEST_DATA;
}

TemporaryDirectory::TemporaryDirectory() {
  path_ = comm::on_root(world(), [] {
    std::string name = (std::filesystem::temp_directory_path() / "allosaur-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot create the temporary folder " + name);
    return name;
  });
}

TemporaryDirectory::~TemporaryDirectory() {
  if (std::uncaught_exceptions() == 0) world().barrier();
  std::error_code ignored;
  if (world().rank() == 0) std::filesystem::remove_all(path_, ignored);
}

}  // namespace allosaur::testing

int main(int argc, char** argv) {
  allosaur::testing::Session session(argc, argv);
  allosaur::testing::session = &session;
  return allosaur::comm::run_guarded(session.environment, session.log,
                                     [&] { return allosaur::testing::run(argc, argv); });
}
