#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "curation/deduplicate.hpp"

namespace allosaur::curation {

/// What became of the images of a pool, in its order.
struct Decisions {
  std::vector<std::string> keys;  // as the truth names them
  std::vector<Fate> fates;
  std::vector<std::int64_t> cause;  // of a duplicate: the image of the pool that represents it
  std::vector<bool> retrieved;
};

/// How decisions compare with what is known of a pool. Shares are of the count that stands before each; 0 of 0 is 1.
struct Score {
  std::int64_t planted = 0;  // copies whose original is in the pool ...
  double recall = 0;         // ... that one image represents together with their original
  std::map<std::string, double> recall_by_kind;
  std::int64_t removed = 0;    // images removed as duplicates ...
  double precision = 0;        // ... that are copies of the same original as the image that represents them
  std::int64_t broken = 0;     // files that cannot be used ...
  double broken_found = 0;     // ... that were rejected
  std::int64_t retrieved = 0;  // images retrieved ...
  double on_topic = 0;         // ... that show one of the classes
  double pool_on_topic = 0;    // the same share of all images of the pool that can be used
};

/// `truth`: the text of a truth file (data/demo_set.hpp): a JSON object with "pool": a list of {"key", "class": name or
/// null, "copy_of": key or null, "planted": what was done, or null}. Throws core::InputError when it is something else,
/// or does not know an image.
Score score(const Decisions& decisions, const std::string& truth);

}  // namespace allosaur::curation
