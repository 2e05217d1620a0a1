#include "evaluation/evaluate.hpp"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"

namespace allosaur::evaluation {
namespace {

/// Classes are compared by number: the same number must mean the same class in both sets.
void require_same_classes(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test) {
  comm::coordinate(group, [&] {
    if (train.class_names() == test.class_names()) return;
    throw core::InputError(
        fmt::format("The training set has {} classes and the test set {}, and their names or their order "
                    "differ. Give two sets with the same classes.",
                    train.class_names().size(), test.class_names().size()));
  });
}

void require_fitting_view(comm::Communicator& group, const features::ExtractConfig& view, int patch_size) {
  comm::coordinate(group, [&] {
    if (view.crop > 0 && view.crop % patch_size == 0 && view.crop <= view.resize) return;
    throw core::UsageError(
        fmt::format("evaluate.crop = {} must be a multiple of the network's patch size {} and at most "
                    "evaluate.resize = {}.",
                    view.crop, patch_size, view.resize));
  });
}

std::int64_t count_classes(comm::Communicator& group, const data::Dataset& train, const Frozen& a, const Frozen& b) {
  std::int64_t classes = static_cast<std::int64_t>(train.class_names().size());
  for (const Frozen* frozen : {&a, &b}) {
    if (frozen->labels.numel() > 0) classes = std::max(classes, frozen->labels.max().item<std::int64_t>() + 1);
  }
  return group.max(classes);
}

using Reject = std::function<void(const std::string&, const std::string&)>;
using Progress = std::function<void(std::int64_t)>;

/// `kind` of features, for display. Keys of rejected images are told as train/... and test/..., since the sets may
/// share them.
FrozenSets collect(
    comm::Communicator& group, const std::string& kind, const data::Dataset& train, const data::Dataset& test,
    const Hooks& hooks,
    const std::function<features::Features(const data::Dataset&, const Reject&, const Progress&)>& extract) {
  require_same_classes(group, train, test);
  const auto frozen = [&](const data::Dataset& dataset, const std::string& folder, const std::string& what) {
    const std::int64_t total = dataset.size();
    const std::int64_t share = group.share(total).size();
    const auto progress = [&](std::int64_t done) {
      if (hooks.progress) hooks.progress(kind + " of the " + what, "images", done * total / share, total);
    };
    const auto reject = [&](const std::string& key, const std::string& reason) {
      if (hooks.reject) hooks.reject(folder + "/" + key, reason);
    };
    return labelled_rows(group, extract(dataset, reject, progress), what);
  };
  FrozenSets sets;
  sets.train = frozen(train, "train", "training set");
  sets.test = frozen(test, "test", "test set");
  sets.classes = count_classes(group, train, sets.train, sets.test);
  return sets;
}

}  // namespace

FrozenSets extract_sets(comm::Communicator& group, const model::VisionTransformer& backbone, const data::Dataset& train,
                        const data::Dataset& test, const EvaluateConfig& config, const Hooks& hooks) {
  require_fitting_view(group, config.extract, backbone.config().patch_size);
  features::ExtractConfig extract = config.extract;
  extract.last_blocks = 1;
  if (config.linear) {
    extract.average_patches = true;
    for (const std::int64_t blocks : config.linear->last_blocks) {
      extract.last_blocks =
          std::max(extract.last_blocks, static_cast<int>(std::min<std::int64_t>(blocks, backbone.config().depth)));
    }
  }
  return collect(group, "features", train, test, hooks,
                 [&](const data::Dataset& dataset, const Reject& reject, const Progress& progress) {
                   return features::extract(group, backbone, dataset, extract, reject, progress);
                 });
}

FrozenSets extract_pixel_sets(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test,
                              const EvaluateConfig& config, const Hooks& hooks) {
  return collect(group, "pixels", train, test, hooks,
                 [&](const data::Dataset& dataset, const Reject& reject, const Progress& progress) {
                   return features::extract_pixels(group, dataset, config.extract, reject, progress);
                 });
}

EvaluateResult score(comm::Communicator& group, FrozenSets sets, const EvaluateConfig& config, const Hooks& hooks) {
  if (config.centre) centre(group, sets.train, sets.test);
  EvaluateResult result{.classes = sets.classes,
                        .train_images = group.sum(sets.train.labels.numel()),
                        .test_images = group.sum(sets.test.labels.numel()),
                        .knn = knn(group, sets.train, sets.test, sets.classes, config.knn),
                        .linear = {}};
  if (config.linear) {
    result.linear =
        linear_probe(group, sets.train, sets.test, sets.classes, *config.linear, [&](std::int64_t iteration) {
          if (hooks.progress) hooks.progress("linear probe", "iterations", iteration, config.linear->iterations);
        });
  }
  return result;
}

EvaluateResult evaluate_backbone(comm::Communicator& group, const model::VisionTransformer& backbone,
                                 const data::Dataset& train, const data::Dataset& test, const EvaluateConfig& config,
                                 const Hooks& hooks) {
  return score(group, extract_sets(group, backbone, train, test, config, hooks), config, hooks);
}

}  // namespace allosaur::evaluation
