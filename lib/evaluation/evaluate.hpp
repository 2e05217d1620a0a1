#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"
#include "evaluation/frozen.hpp"
#include "evaluation/knn.hpp"
#include "evaluation/linear.hpp"
#include "features/extract.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::evaluation {

struct EvaluateConfig {
  features::ExtractConfig extract;  ///< what the probe needs of blocks and patches is set from `linear`
  bool centre = false;              ///< see centre()
  KnnConfig knn;
  std::optional<LinearConfig> linear = LinearConfig{};  ///< empty: no probe
};

/// Called on the caller's thread of every rank; either may be empty.
struct Hooks {
  /// An image that cannot be decoded; its key is train/... or test/...
  std::function<void(const std::string& key, const std::string& reason)> reject;
  /// Done so far over all ranks (as judged by this one) of a stage: for display, and to show that the rank is alive.
  std::function<void(std::string_view stage, std::string_view unit, std::int64_t done, std::int64_t total)> progress;
};

/// The frozen features of a training (bank) and a test set.
struct FrozenSets {
  Frozen train, test;
  std::int64_t classes = 0;
};

struct EvaluateResult {
  std::int64_t classes = 0, train_images = 0, test_images = 0;  ///< images: used, over all ranks
  KnnResult knn;
  std::optional<LinearResult> linear;
};

/// Collective. The features that score() needs. Throws core::UsageError when the view does not fit the network, and
/// core::InputError when the two sets differ in their classes or one has no usable image.
FrozenSets extract_sets(comm::Communicator& group, const model::VisionTransformer& backbone, const data::Dataset& train,
                        const data::Dataset& test, const EvaluateConfig& config, const Hooks& hooks = {});

/// As extract_sets(), with the pixels of the evaluation view as features (k-NN only: there are no patch means).
FrozenSets extract_pixel_sets(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test,
                              const EvaluateConfig& config, const Hooks& hooks = {});

/// Collective. k-NN and, with `config.linear`, the linear probe, on the features as they are or (`config.centre`)
/// centred.
EvaluateResult score(comm::Communicator& group, FrozenSets sets, const EvaluateConfig& config, const Hooks& hooks = {});

/// Collective. extract_sets() and score() in one: an evaluation while training.
EvaluateResult evaluate_backbone(comm::Communicator& group, const model::VisionTransformer& backbone,
                                 const data::Dataset& train, const data::Dataset& test, const EvaluateConfig& config,
                                 const Hooks& hooks = {});

}  // namespace allosaur::evaluation
