#include <string>

#include "core/error.hpp"
#include "curation/score.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

using namespace curation;

TEST_CASE("score compares decisions with the truth") {
  const std::string truth = R"({"pool": [
    {"key": "a", "class": "dots", "copy_of": null, "planted": null},
    {"key": "a1", "class": "dots", "copy_of": "a", "planted": "cropped"},
    {"key": "a2", "class": "dots", "copy_of": "a", "planted": "blurred"},
    {"key": "b", "class": null, "copy_of": null, "planted": null},
    {"key": "c", "class": null, "copy_of": null, "planted": null},
    {"key": "x", "class": null, "copy_of": null, "planted": "empty"}]})";
  // a1 stands for a; a2 was missed; c was taken for a copy of b.
  const Decisions decisions{
      .keys = {"a", "a1", "a2", "b", "c", "x"},
      .fates = {Fate::duplicate, Fate::kept, Fate::kept, Fate::kept, Fate::duplicate, Fate::rejected},
      .cause = {1, -1, -1, -1, 3, -1},
      .retrieved = {false, true, true, true, false, false}};
  const Score found = score(decisions, truth);
  CHECK(found.planted == 2);
  CHECK(found.recall == 0.5);
  CHECK(found.recall_by_kind.at("cropped") == 1.0);
  CHECK(found.recall_by_kind.at("blurred") == 0.0);
  CHECK(found.removed == 2);
  CHECK(found.precision == 0.5);
  CHECK(found.broken_found == 1.0);
  CHECK(found.on_topic == doctest::Approx(2.0 / 3));
  CHECK(found.pool_on_topic == doctest::Approx(3.0 / 5));
  CHECK_THROWS_AS(score(decisions, "[]"), core::InputError);
  CHECK_THROWS_AS(score(decisions, R"({"pool": []})"), core::InputError);
}

}  // namespace
}  // namespace allosaur
