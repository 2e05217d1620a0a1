#include "evaluation/evaluate.hpp"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"

namespace allosaur::evaluation {
namespace {

constexpr const char *kTrain = "training set", *kTest = "test set";  // in messages

std::int64_t count_classes(comm::Communicator& group, const data::Dataset& train, const Frozen& a, const Frozen& b) {
  std::int64_t classes = static_cast<std::int64_t>(train.class_names().size());
  for (const Frozen* frozen : {&a, &b}) {
    if (frozen->labels.numel() > 0) classes = std::max(classes, frozen->labels.max().item<std::int64_t>() + 1);
  }
  return group.max(classes);
}

/// The sets that `extract(dataset, hooks)` gives; `kind` of features, for display.
FrozenSets collect(
    comm::Communicator& group, const std::string& kind, const data::Dataset& train, const data::Dataset& test,
    const Hooks& hooks,
    const std::function<features::Features(const data::Dataset&, comm::Range, const features::Hooks&)>& extract) {
  require_same_classes(group, train, test);
  const auto features_of = [&](const data::Dataset& dataset, const std::string& what) {
    const comm::Range rows = group.share(dataset.size());
    features::Hooks own;
    own.progress = [&](std::int64_t done) {
      if (hooks.progress)
        hooks.progress(kind + " of the " + what, "images", done * dataset.size() / rows.size(), dataset.size());
    };
    own.stop = hooks.stop;
    own.views = hooks.views;
    return extract(dataset, rows, own);
  };
  const FrozenSets stopped{.train = {}, .test = {}, .complete = false};
  const features::Features bank = features_of(train, kTrain);
  if (group.max(!bank.complete) != 0) return stopped;
  const features::Features queries = features_of(test, kTest);
  if (group.max(!queries.complete) != 0) return stopped;
  return freeze(group, train, bank, queries);
}

}  // namespace

void check_view(const features::ExtractConfig& view, int patch_size) {
  if (view.crop % patch_size == 0 && view.crop <= view.resize) return;
  throw core::UsageError(
      fmt::format("evaluate.crop = {} must be a multiple of the network's patch size {} and at most "
                  "evaluate.resize = {}.",
                  view.crop, patch_size, view.resize));
}

features::ExtractConfig extraction(const EvaluateConfig& config, const model::VitConfig& network) {
  check_view(config.extract, network.patch_size);
  features::ExtractConfig extract = config.extract;
  extract.last_blocks = 1;
  if (config.linear) {
    extract.average_patches = true;
    for (const std::int64_t blocks : config.linear->last_blocks)
      extract.last_blocks =
          std::max(extract.last_blocks, static_cast<int>(std::min<std::int64_t>(blocks, network.depth)));
  }
  return extract;
}

void require_same_classes(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test) {
  comm::coordinate(group, [&] {
    if (train.class_names() == test.class_names()) return;
    throw core::InputError(
        fmt::format("The training set has {} classes and the test set {}, and their names or their order "
                    "differ. Give two sets with the same classes.",
                    train.class_names().size(), test.class_names().size()));
  });
}

FrozenSets freeze(comm::Communicator& group, const data::Dataset& train, const features::Features& bank,
                  const features::Features& queries) {
  FrozenSets sets{.train = labelled_rows(group, bank, kTrain), .test = labelled_rows(group, queries, kTest)};
  sets.classes = count_classes(group, train, sets.train, sets.test);
  return sets;
}

FrozenSets extract_sets(comm::Communicator& group, const model::VisionTransformer& backbone, const data::Dataset& train,
                        const data::Dataset& test, const EvaluateConfig& config, const Hooks& hooks) {
  const features::ExtractConfig extract =
      comm::coordinate(group, [&] { return extraction(config, backbone.config()); });
  return collect(group, "features", train, test, hooks,
                 [&](const data::Dataset& dataset, comm::Range rows, const features::Hooks& own) {
                   return features::extract(backbone, dataset, rows, extract, own);
                 });
}

FrozenSets extract_pixel_sets(comm::Communicator& group, const data::Dataset& train, const data::Dataset& test,
                              const EvaluateConfig& config, const Hooks& hooks) {
  return collect(group, "pixels", train, test, hooks,
                 [&](const data::Dataset& dataset, comm::Range rows, const features::Hooks& own) {
                   return features::extract_pixels(dataset, rows, config.extract, own);
                 });
}

EvaluateResult score(comm::Communicator& group, FrozenSets sets, const EvaluateConfig& config, const Hooks& hooks) {
  if (!sets.complete) return {.knn = {}, .linear = {}, .complete = false};
  if (config.centre) centre(group, sets.train, sets.test);
  EvaluateResult result{.classes = sets.classes,
                        .train_images = group.sum(sets.train.labels.numel()),
                        .test_images = group.sum(sets.test.labels.numel()),
                        .knn = knn(group, sets.train, sets.test, sets.classes, config.knn, hooks.alive),
                        .linear = {}};
  if (config.linear) {
    ProbeHooks probe{.progress = {}, .stop = hooks.stop, .alive = hooks.alive, .state = hooks.probe};
    if (hooks.progress)
      probe.progress = [&](std::int64_t done) {
        hooks.progress("linear probe", "iterations", done, config.linear->iterations);
      };
    result.linear = linear_probe(group, sets.train, sets.test, sets.classes, *config.linear, probe);
    result.complete = result.linear->complete;
  }
  return result;
}

EvaluateResult evaluate_backbone(comm::Communicator& group, const model::VisionTransformer& backbone,
                                 const data::Dataset& train, const data::Dataset& test, const EvaluateConfig& config,
                                 const Hooks& hooks) {
  return score(group, extract_sets(group, backbone, train, test, config, hooks), config, hooks);
}

}  // namespace allosaur::evaluation
