#include "curation/score.hpp"

#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "core/error.hpp"

namespace allosaur::curation {
namespace {

using nlohmann::json;

/// What the truth says of one image.
struct Known {
  std::string original;  // its own key, for an original
  std::string planted;   // empty: nothing
  bool on_topic = false;

  bool broken() const { return planted == "truncated" || planted == "empty" || planted == "text"; }
};

std::map<std::string, Known> read_truth(const std::string& text) {
  std::map<std::string, Known> truth;
  try {
    const json document = json::parse(text);
    for (const json& entry : document.at("pool")) {
      const std::string key = entry.at("key");
      const json &original = entry.at("copy_of"), &planted = entry.at("planted");
      truth[key] = {original.is_null() ? key : original.get<std::string>(),
                    planted.is_null() ? std::string() : planted.get<std::string>(), !entry.at("class").is_null()};
    }
  } catch (const json::exception& error) {
    throw core::InputError(fmt::format("The truth file is not one that `allosaur demo` writes: {}.", error.what()));
  }
  return truth;
}

double share(std::int64_t part, std::int64_t whole) {
  return whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

Score score(const Decisions& decisions, const std::string& text) {
  const std::map<std::string, Known> truth = read_truth(text);
  std::map<std::string, std::string> representative;
  for (std::size_t i = 0; i < decisions.keys.size(); ++i) {
    const bool duplicate = decisions.fates[i] == Fate::duplicate;
    representative[decisions.keys[i]] = decisions.keys[duplicate ? static_cast<std::size_t>(decisions.cause[i]) : i];
  }
  const auto known = [&](const std::string& key) -> const Known& {
    const auto found = truth.find(key);
    if (found != truth.end()) return found->second;
    throw core::InputError(
        fmt::format("The truth file does not know the image {} of the pool: it belongs to another.", key));
  };

  std::map<std::string, std::array<std::int64_t, 2>> by_kind;  // found, planted
  std::int64_t found = 0, right = 0, rejected = 0, on_topic = 0, usable = 0, usable_on_topic = 0;
  Score result;
  for (std::size_t i = 0; i < decisions.keys.size(); ++i) {
    const std::string& key = decisions.keys[i];
    const Known& image = known(key);
    if (image.broken()) {
      ++result.broken;
      rejected += decisions.fates[i] == Fate::rejected;
      continue;
    }
    ++usable;
    usable_on_topic += image.on_topic;
    if (const auto original = representative.find(image.original);
        image.original != key && original != representative.end()) {
      const bool together = representative[key] == original->second;
      auto& kind = by_kind[image.planted];
      ++result.planted;
      ++kind[1];
      found += together;
      kind[0] += together;
    }
    if (decisions.fates[i] == Fate::duplicate) {
      ++result.removed;
      right += known(representative[key]).original == image.original;
    }
    if (decisions.retrieved[i]) {
      ++result.retrieved;
      on_topic += image.on_topic;
    }
  }
  result.recall = share(found, result.planted);
  for (const auto& [kind, counts] : by_kind) result.recall_by_kind[kind] = share(counts[0], counts[1]);
  result.precision = share(right, result.removed);
  result.broken_found = share(rejected, result.broken);
  result.on_topic = share(on_topic, result.retrieved);
  result.pool_on_topic = share(usable_on_topic, usable);
  return result;
}

}  // namespace allosaur::curation
