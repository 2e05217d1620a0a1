#include "jobs/run_directory.hpp"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <sstream>
#include <string>

#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "testing.hpp"

using namespace allosaur;

namespace {

/// A job's surroundings, with one fixed and one free option of its own.
class Fixture {
 public:
  explicit Fixture(const std::vector<std::string>& flags) : watchdog_(log_, testing::world(), std::chrono::seconds(0)) {
    jobs::declare_run_options(options_);
    options_.section("Job");
    options_.add("job.depth", 12, "decides what is computed");
    options_.add("job.workers", 2, "decides how", core::OptionKind::free);
    auto all = flags;
    all.push_back("--output=" + directory_.path().string());
    options_.parse(all);
  }
  Fixture() : Fixture(std::vector<std::string>{}) {}
  const core::Options& options() { return options_; }
  const std::filesystem::path& path() { return directory_.path(); }
  jobs::Context context(const core::Options& options) { return {testing::world(), options, log_, stop_, watchdog_, 1}; }
  jobs::Context context() { return context(options_); }

 private:
  testing::TemporaryDirectory directory_;
  core::Options options_;
  core::Log log_{testing::world().rank(), core::Level::error};
  comm::StopSignal stop_;
  comm::Watchdog watchdog_;
};

core::Options changed(const core::Options& options, std::string_view key, std::int64_t value) {
  core::Options other = options;
  other.set(key, value);
  return other;
}

/// What run opened in `path` says about itself.
nlohmann::json environment(const std::filesystem::path& path) {
  return nlohmann::json::parse(core::read_text(path / "environment.json"));
}

std::size_t line_count(const std::filesystem::path& file) {
  const std::string text = core::read_text(file);
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("run directory: a run leaves its configuration, environment, logs and metrics") {
  Fixture fixture;
  jobs::Context context = fixture.context();
  jobs::RunDirectory run(context, "demo", fixture.path());
  CHECK(run.attempt() == 1);
  CHECK(!run.existed());
  CHECK((run.metrics() != nullptr) == (testing::world().rank() == 0));
  testing::world().barrier();
  CHECK(core::read_text(fixture.path() / "config.cfg") == fixture.options().resolved());
  const auto told = environment(fixture.path());
  CHECK(told["job"] == "demo");
  CHECK(told["ranks"] == testing::world().size());
  CHECK(told["hosts"].size() == static_cast<std::size_t>(testing::world().size()));
  CHECK(told["libraries"].get<std::string>().find("LibTorch") != std::string::npos);
  CHECK(std::filesystem::is_directory(fixture.path() / "results"));
  CHECK(std::filesystem::exists(fixture.path() / "logs" / fmt::format("rank_{:05}.jsonl", testing::world().rank())));
}

TEST_CASE("run directory: continued with the same fixed options, refused with others") {
  Fixture fixture;
  jobs::Context first = fixture.context();
  { jobs::RunDirectory run(first, "demo", fixture.path()); }
  testing::world().barrier();

  const core::Options more_workers = changed(fixture.options(), "job.workers", 4);
  jobs::Context second = fixture.context(more_workers);
  {
    jobs::RunDirectory run(second, "demo", fixture.path());
    CHECK(run.attempt() == 2);
    CHECK(run.existed());
  }
  testing::world().barrier();

  const core::Options deeper = changed(fixture.options(), "job.depth", 24);
  jobs::Context third = fixture.context(deeper);
  CHECK_THROWS_WITH_AS(jobs::RunDirectory(third, "demo", fixture.path()),
                       doctest::Contains("job.depth: was 12, now 24"), core::Error);
  CHECK_THROWS_WITH_AS(jobs::RunDirectory(first, "pack", fixture.path()),
                       doctest::Contains("holds a run of `allosaur demo`"), core::Error);
  CHECK(environment(fixture.path())["attempt"] == 2);
}

TEST_CASE("run directory: refused on every rank while another run holds it") {
  Fixture fixture;
  jobs::Context context = fixture.context();
  jobs::RunDirectory run(context, "demo", fixture.path());
  // flock knows open files, not processes, so a second lock of this process is refused as a stranger's is.
  CHECK_THROWS_WITH_AS(jobs::RunDirectory(context, "demo", fixture.path()), doctest::Contains("in use by another run"),
                       core::Error);
}

TEST_CASE("rejected files: listed at once, merged once each, and an error past the limit") {
  Fixture fixture;
  jobs::Context context = fixture.context();
  const int ranks = testing::world().size();
  const std::filesystem::path merged = fixture.path() / "rejected.jsonl";
  jobs::RejectedList rejected(context, fixture.path());
  rejected.judge(0, 0.0);
  CHECK(!std::filesystem::exists(merged));

  rejected.add(fmt::format("images/{}.jpg", testing::world().rank()), "truncated \xff");
  rejected.add("images/shared.jpg", "empty");
  CHECK(line_count(fixture.path() / fmt::format("rejected_{:05}.jsonl", testing::world().rank())) == 2);
  rejected.judge(20, 0.1);
  CHECK(line_count(merged) == static_cast<std::size_t>(ranks + 1));
  testing::world().barrier();
  const std::string counted = fmt::format("{} of {} input files could not be used", ranks + 1, 5 * ranks);
  CHECK_THROWS_WITH_AS(rejected.judge(5, 0.1), doctest::Contains(counted.c_str()), core::InputError);
  CHECK_THROWS_WITH_AS(rejected.judge(5, 0.1), doctest::Contains("run.max_rejected = 0.1"), core::InputError);
  CHECK(line_count(merged) == static_cast<std::size_t>(ranks + 1));
}

TEST_CASE("problems of a source are listed, and weighed against all that it held") {
  Fixture fixture;
  jobs::Context context = fixture.context();
  const std::filesystem::path list = fixture.path() / "list.csv";
  if (testing::world().rank() == 0) std::ofstream(list) << "a.png\nb.png\nc.png\n,nothing\n";
  testing::world().barrier();
  const auto source = data::open_dataset(testing::world(), list, data::Labels::ignored);
  jobs::RejectedList rejected(context, fixture.path());
  rejected.add_problems(*source);
  rejected.judge(0, 0.25);
  rejected.judge(1, 0.25);  // however few images were tried
  CHECK(line_count(fixture.path() / "rejected.jsonl") == 1);
  testing::world().barrier();
  CHECK_THROWS_WITH_AS(rejected.judge(9, 0.24), doctest::Contains("1 of 4 input files could not be used"),
                       core::InputError);
}
