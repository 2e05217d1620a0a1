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

/// Called on the caller's thread of every rank; any may be empty.
struct Hooks {
  /// Done so far over all ranks (as judged by this one) of a stage: for display, and to show that the rank is alive.
  std::function<void(std::string_view stage, std::string_view unit, std::int64_t done, std::int64_t total)> progress;
  std::function<void()> alive;  ///< now and then in between, to show that the rank is
  /// Whether to leave early: where one rank says so, all do. Asked during extraction and by the probe.
  std::function<bool()> stop;
  features::KeptViews* views = nullptr;  ///< of both sets, for the next evaluation
  ProbeState* probe = nullptr;           ///< what the probe goes on from; where it stands when it leaves early
};

/// The frozen features of a training (bank) and a test set.
struct FrozenSets {
  Frozen train, test;
  std::int64_t classes = 0;
  bool complete = true;  ///< false: stopped before the end, and of no use
};

struct EvaluateResult {
  std::int64_t classes = 0, train_images = 0, test_images = 0;  ///< images: used, over all ranks
  KnnResult knn;
  std::optional<LinearResult> linear;
  bool complete = true;  ///< false: stopped before the end; what there is of it is of no use, but for Hooks::probe
};

/// Local. Throws core::UsageError when the view does not fit a network's patches.
void check_view(const features::ExtractConfig& view, int patch_size);

/// Local. `config.extract` with what the probe needs of a network's blocks and patches. Throws as check_view().
features::ExtractConfig extraction(const EvaluateConfig& config, const model::VitConfig& network);

/// Collective. Classes are compared by number: throws core::InputError when the same number does not mean the same
/// class in both sets.
void require_same_classes(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test);

/// Collective. This rank's features of both sets without the images that cannot be used; throws as labelled_rows().
FrozenSets freeze(comm::Communicator& group, const data::Dataset& train, const features::Features& bank,
                  const features::Features& queries);

/// Collective. The features that score() needs. Broken images are left out. Throws core::UsageError when the view does
/// not fit the network, and core::InputError when the two sets differ in their classes or one has no usable image.
FrozenSets extract_sets(comm::Communicator& group, const model::VisionTransformer& backbone, const data::Dataset& train,
                        const data::Dataset& test, const EvaluateConfig& config, const Hooks& hooks = {});

/// As extract_sets(), with the pixels of the evaluation view as features (k-NN only: there are no patch means).
FrozenSets extract_pixel_sets(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test,
                              const EvaluateConfig& config, const Hooks& hooks = {});

/// Collective. k-NN and, with `config.linear`, the linear probe, on the features as they are or (`config.centre`)
/// centred. Leaves early when asked to, and where the sets are not complete.
EvaluateResult score(comm::Communicator& group, FrozenSets sets, const EvaluateConfig& config, const Hooks& hooks = {});

/// Collective. extract_sets() and score() in one: an evaluation while training.
EvaluateResult evaluate_backbone(comm::Communicator& group, const model::VisionTransformer& backbone,
                                 const data::Dataset& train, const data::Dataset& test, const EvaluateConfig& config,
                                 const Hooks& hooks = {});

}  // namespace allosaur::evaluation
