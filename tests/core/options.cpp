#include "core/options.hpp"

#include <string>

#include "core/error.hpp"
#include "testing.hpp"

using allosaur::core::OptionKind;
using allosaur::core::Options;
using allosaur::core::UsageError;

namespace {

Options declared() {
  Options options;
  options.section("Optimiser");
  options.add("optim.base_lr", 0.004, "learning rate");
  options.add("optim.epochs", 100, "epochs");
  options.section("Data");
  options.add("data.flip", true, "mirror images");
  options.add("data.name", "", "name");
  options.add("data.scale", std::vector<double>{0.32, 1.0}, "crop area");
  options.add("data.sizes", std::vector<std::int64_t>{224, 98}, "crop sizes");
  options.add("data.roots", std::vector<std::string>{}, "folders");
  options.add("output", "runs/a", "folder", OptionKind::free);
  options.refuse("train.sharding_strategy", "parameters are always sharded");
  return options;
}

/// The message of the UsageError that parsing throws; empty when it does not.
std::string complaint(const std::vector<std::string>& flags, std::string_view config = {}) {
  Options options = declared();
  try {
    options.parse(flags, config, "run.cfg");
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("options: defaults, file and flags, where a flag wins") {
  Options options = declared();
  options.parse({"--optim.epochs=7", "--data.scale", "0.5,0.75", "--data.roots=a, b"},
                "# a comment\n"
                "output = /data/run#1   # the rest is a comment\n"
                "[optim]\n"
                "base_lr = 2e-4\n"
                "epochs = 50\n"
                "[data]\n"
                "flip = false\n"
                "name = \"with # sign \"\n",
                "run.cfg");
  CHECK(options.number("optim.base_lr") == 2e-4);
  CHECK(options.integer("optim.epochs") == 7);
  CHECK(!options.flag("data.flip"));
  CHECK(options.text("data.name") == "with # sign ");
  CHECK(options.path("output") == "/data/run#1");
  CHECK(options.get<std::vector<double>>("data.scale") == std::vector<double>{0.5, 0.75});
  CHECK(options.get<std::vector<std::int64_t>>("data.sizes") == std::vector<std::int64_t>{224, 98});
  CHECK(options.get<std::vector<std::string>>("data.roots") == std::vector<std::string>{"a", "b"});
  CHECK_THROWS_AS(options.integer("optim.base_lr"), std::bad_variant_access);
  CHECK_THROWS_AS(options.integer("optim.unknown"), std::logic_error);
}

TEST_CASE("options: a boolean flag alone is true, an emptied value is empty") {
  Options options = declared();
  options.parse({"--data.flip", "--data.name=", "--data.sizes="}, "data.flip = no\ndata.name = x\n", "run.cfg");
  CHECK(options.flag("data.flip"));
  CHECK(options.text("data.name").empty());
  CHECK(options.get<std::vector<std::int64_t>>("data.sizes").empty());
}

TEST_CASE("options: values that a rule forbids stand in the report") {
  Options options;
  options.add("rate", 0.5, "").above(0).at_most(1);
  options.add("count", 4, "").at_least(1).fits_int();
  options.add("beta", 0.9, "").at_least(0).below(1);
  options.add("range", std::vector<double>{0.1, 0.5}, "").values(2).within(0, 1);
  options.add("blocks", std::vector<std::int64_t>{1, 4}, "").not_empty().at_least(1);
  options.add("rule", "none", "").one_of({"none", "sqrt"});
  options.parse({"--rate=1", "--count=1", "--beta=0", "--range=0,1", "--blocks=7", "--rule=sqrt"});
  CHECK(options.small_integer("count") == 1);
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"--rate=0", "rate = 0 must be above 0 and at most 1"},
      {"--rate=1.01", "rate = 1.01 must be above 0 and at most 1"},
      {"--count=0", "count = 0 must be at least 1"},
      {"--count=3000000000", "count = 3000000000 is too large"},
      {"--beta=1", "beta = 1 must be at least 0 and below 1"},
      {"--range=0.5", "range = 0.5 must have 2 values"},
      {"--range=0,1.5", "range = 0,1.5 must be at least 0 and at most 1"},
      {"--blocks=", "blocks = '' must have at least one value"},
      {"--blocks=3,0", "blocks = 3,0 must be at least 1"},
      {"--rule=linear", "rule = linear must be one of none, sqrt"}};
  for (const auto& [flag, message] : wrong) {
    Options again = options;
    CHECK_THROWS_WITH_AS(again.parse({flag}), doctest::Contains(("flag: " + message).c_str()), UsageError);
  }
  CHECK_THROWS_WITH_AS(options.set("count", 0), "count = 0 must be at least 1.", UsageError);
  options.add("wide", 4, "");
  CHECK_THROWS_AS(options.small_integer("wide"), std::logic_error);
  options.add("zero", 0, "").above(0);
  CHECK_THROWS_WITH_AS(options.parse({}), doctest::Contains("rule: zero"), std::logic_error);
}

TEST_CASE("options: all errors stand in one report, with places and nearest keys") {
  const std::string text = complaint({"--optim.epoch=3", "--data.scale=0.3,x", "stray", "--epochs", "4", "--output"},
                                     "optim.base_lr = fast\n"
                                     "\n"
                                     "[data]\n"
                                     "flpi = true\n"
                                     "sizes = 1.5\n"
                                     "just words\n"
                                     "name = a\n"
                                     "name = b\n"
                                     "[train]\n"
                                     "sharding_strategy = FULL_SHARD\n"
                                     "completely_different = 1\n");
  CHECK(contains(text, "run.cfg:1: optim.base_lr = 'fast' is not of type NUMBER"));
  CHECK(contains(text, "run.cfg:4: unknown key data.flpi; did you mean data.flip?"));
  CHECK(contains(text, "run.cfg:5: data.sizes = '1.5' is not of type INTEGER,..."));
  CHECK(contains(text, "run.cfg:6: 'just words' is neither"));
  CHECK(contains(text, "run.cfg:8: data.name is given twice (first: run.cfg:7)"));
  CHECK(contains(text, "run.cfg:10: train.sharding_strategy is not an option here: parameters are always sharded"));
  CHECK(contains(text, "run.cfg:11: unknown key train.completely_different\n"));
  CHECK(contains(text, "flag: unknown key optim.epoch; did you mean optim.epochs?"));
  CHECK(contains(text, "flag: data.scale = '0.3,x' is not of type NUMBER,..."));
  CHECK(contains(text, "unexpected argument 'stray'"));
  CHECK(contains(text, "flag: unknown key epochs; did you mean optim.epochs?"));
  CHECK(contains(text, "flag --output lacks its value"));
}

TEST_CASE("options: abbreviations, not-finite numbers and numbers out of range are refused") {
  CHECK(contains(complaint({"--optim.base=1"}), "unknown key optim.base"));
  CHECK(contains(complaint({"--optim.base_lr=nan"}), "not of type NUMBER"));
  CHECK(contains(complaint({"--optim.epochs=99999999999999999999"}), "not of type INTEGER"));
  CHECK(contains(complaint({"--data.flip=perhaps"}), "not of type true|false"));
  CHECK(contains(complaint({"--optim.epochs=1", "--optim.epochs=2"}), "given twice"));
  CHECK(complaint({"--optim.base_lr=-0.5"}).empty());
}

TEST_CASE("options: a required key is asked for, and may be set in code") {
  Options options;
  options.add_required("input", "folder of images");
  CHECK_THROWS_WITH_AS(options.parse({}), doctest::Contains("--input must be given (folder of images)"), UsageError);
  options.set("input", "here");
  options.parse({});
  CHECK(options.text("input") == "here");
  CHECK_THROWS_AS(options.set("input", 3), std::logic_error);
  CHECK_THROWS_AS(options.set("inputs", "x"), std::logic_error);
}

TEST_CASE("options: resolved() reads back as the same values") {
  Options options = declared();
  options.parse({"--data.name= a # b", "--optim.base_lr=0.1", "--data.scale=0.05,0.32", "--data.roots=x,y z",
                 "--data.flip=false"});
  Options again = declared();
  again.parse({}, options.resolved(), "config.cfg");
  CHECK(again.resolved() == options.resolved());
  CHECK(again.text("data.name") == " a # b");
  CHECK(again.number("optim.base_lr") == 0.1);
  CHECK(options.differences(again.resolved()).empty());
}

TEST_CASE("options: quotes, comment signs and blanks in values read back") {
  for (const std::string value : {"#x", "a#b", "a #b", "5\" disk", "\"quoted\"", " blank ", "a = b", "[x]", ""}) {
    Options options = declared(), again = declared();
    options.parse({"--data.name=" + value});
    again.parse({}, options.resolved(), "config.cfg");
    CHECK(again.text("data.name") == value);
  }
  Options options = declared();
  options.parse({}, "data.name = 5\" disk # comment\r\noutput = \"a\" # say \"b\"\n", "run.cfg");
  CHECK(options.text("data.name") == "5\" disk");
  CHECK(options.text("output") == "a");
}

TEST_CASE("options: differences name changed fixed options only") {
  Options before = declared(), now = declared();
  before.parse({"--output=a", "--optim.epochs=5"});
  now.parse({"--output=b", "--optim.epochs=6", "--data.scale=0.32,1.00"});
  CHECK(now.differences(before.resolved()) == std::vector<std::string>{"optim.epochs: was 5, now 6"});
  CHECK(now.differences("").size() == 1);  // a key that a former version did not have had its default
}

TEST_CASE("options: help lists sections, types, defaults and meanings") {
  const std::string help = declared().help();
  CHECK(contains(help, "Optimiser:"));
  CHECK(contains(help, "--optim.base_lr NUMBER (=0.004)"));
  CHECK(contains(help, "--data.scale NUMBER,... (=0.32,1)"));
  CHECK(contains(help, "mirror images"));
}

TEST_CASE("options: help tells the rules, unless the meaning does") {
  Options options;
  options.add("rate", 0.5, "share").above(0).at_most(1);
  options.add("range", std::vector<double>{0.1, 0.5}, "limits").values(2).at_least(0);
  options.add("rule", "none", "how").one_of({"none", "sqrt"});
  options.add("level", "info", "info or error").one_of({"info", "error"});
  options.add("count", 4, "images").fits_int();
  for (const char* text : {"share (above 0 and at most 1)\n", "limits (2 values, at least 0)\n",
                           "how (one of none, sqrt)\n", "info or error\n", "images\n"})
    CHECK(contains(options.help(), text));
}
