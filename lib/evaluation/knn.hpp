#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "comm/communicator.hpp"
#include "evaluation/frozen.hpp"
#include "evaluation/metrics.hpp"

namespace allosaur::evaluation {

/// Weighted k-nearest-neighbour classification (Wu et al., CVPR'18, as in dinov2/eval/knn.py).
struct KnnConfig {
  std::vector<std::int64_t> k = {10, 20, 100, 200};  ///< each at least 1
  double temperature = 0.07;
};

struct KnnResult {
  struct Score {
    std::int64_t k = 0;
    Accuracy accuracy;
  };
  std::vector<Score> scores;  ///< by rising k, never empty
  const Score& best() const;  ///< by top-1, the smaller k among equals
};

/// Collective. Features are the last block's class tokens, of unit length. Every query's neighbours vote with
/// softmax(similarity / temperature) over the largest k; the first k votes count, without being renormalised. A k
/// larger than the bank is the whole bank. `bank` has a row on at least one rank; labels are in [0, classes).
/// `after_block` is called now and then to show that work goes on. Cost a rank: that of search::exact_top_k, and all
/// labels of the bank in memory.
KnnResult knn(comm::Communicator& group, const Frozen& bank, const Frozen& queries, std::int64_t classes,
              const KnnConfig& config, const std::function<void()>& after_block = {});

}  // namespace allosaur::evaluation
