#include "core/log.hpp"

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/files.hpp"
#include "testing.hpp"

using namespace allosaur;
using nlohmann::json;

namespace {

std::vector<json> lines_of(const std::filesystem::path& file) {
  std::vector<json> records;
  std::istringstream lines(core::read_text(file));
  for (std::string line; std::getline(lines, line);) records.push_back(json::parse(line));
  return records;
}

}  // namespace

TEST_CASE("log: every record of a rank is a JSON line, whatever it holds") {
  testing::TemporaryDirectory directory;
  {
    core::Log log(3, core::Level::info);
    log.info("before a run directory is known");
    log.open(directory.path());
    log.warning("quotes \" and \xff bytes that are not UTF-8");
    log.event("step", {{"loss", std::nan("")}, {"norms", {1.5, std::numeric_limits<double>::infinity()}}});
  }
  const auto records = lines_of(directory.path() / "logs" / "rank_00003.jsonl");
  REQUIRE(records.size() == 2);
  CHECK(records[0]["rank"] == 3);
  CHECK(records[0]["level"] == "warning");
  CHECK(records[1]["event"] == "step");
  CHECK(records[1]["fields"]["loss"] == "nan");
  CHECK(records[1]["fields"]["norms"] == json{1.5, "inf"});
  CHECK(!std::filesystem::exists(directory.path() / "log.txt"));
}

TEST_CASE("log: level names") {
  CHECK(core::level_of("warning") == core::Level::warning);
  CHECK_THROWS_AS(core::level_of("loud"), std::logic_error);
}

TEST_CASE("metrics: attempts append, and half a line of a killed run is removed") {
  testing::TemporaryDirectory directory;
  const auto file = directory.path() / "metrics.jsonl";
  core::MetricsLog(file, 1).write({{"iteration", 0}, {"loss", std::nan("")}});
  std::ofstream(file, std::ios::app) << "{\"iteration\": 1, \"lo";
  core::MetricsLog(file, 2).write({{"iteration", 1}, {"loss", 2.5}});
  const auto records = lines_of(file);
  REQUIRE(records.size() == 2);
  CHECK(records[0]["loss"] == "nan");
  CHECK(records[0]["attempt"] == 1);
  CHECK(records[1]["attempt"] == 2);
  CHECK(records[1]["loss"] == 2.5);
  CHECK(records[1].contains("time"));
}

TEST_CASE("metrics: a full disk is an error") {
  CHECK_THROWS_AS(core::MetricsLog("/dev/full", 1).write({{"iteration", 0}}), core::StorageError);
}

TEST_CASE("progress: counts, and needs no terminal") {
  testing::TemporaryDirectory directory;
  core::Log log(0, core::Level::error);
  log.open(directory.path());
  {
    core::Progress progress(log, "reading", 10, "images", 4);
    for (int i = 5; i <= 10; ++i) progress.update(i, "note");
    progress.finish();
  }
  const auto records = lines_of(directory.path() / "logs" / "rank_00000.jsonl");
  REQUIRE(!records.empty());
  CHECK(records.back()["text"].get<std::string>().starts_with("reading: 10 images in"));
}
