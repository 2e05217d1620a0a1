#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"
#include "features/extract.hpp"
#include "jobs/job.hpp"
#include "jobs/run_directory.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::jobs {

/// Arrays by name, all with a row for each of some images.
using Arrays = std::map<std::string, at::Tensor>;

/// What keep_rows() computes the rows of some images with. `progress(done)` shows how many of them are done. Local;
/// gives nothing when it left early because a stop was requested.
using ComputeRows =
    std::function<std::optional<Arrays>(comm::Range images, const std::function<void(std::int64_t)>& progress)>;

/// Collective. Arrays with a row for each image of a list of `total`, which take long to compute: kept on disk in at
/// most 64 blocks of consecutive images, `stem`-00000.h5 and so on, each a sharded array that is written when it is
/// finished. Blocks that are there and were written for the same `identity` are not computed again, on any number of
/// ranks; a stop loses one block. Gives this rank's share of the rows, or nothing when a stop was requested.
std::optional<Arrays> keep_rows(Context& context, const std::filesystem::path& stem, const std::string& identity,
                                std::int64_t total, const ComputeRows& compute);

/// What features are extracted from, and where they are kept.
struct FeatureSource {
  const data::Dataset& images;
  std::string images_identity;      ///< see identify()
  std::filesystem::path directory;  ///< the run's: they lie in `directory`/features
  std::string name;                 ///< of their files
  std::string key_prefix;           ///< of rejected images
};

/// Collective. This rank's share of the features of a backbone, by keep_rows(); `fingerprint` is the backbone's, see
/// model::fingerprint(). Throws core::NumericalError when they are not finite.
std::optional<features::Features> keep_features(Context& context, const model::VisionTransformer& backbone,
                                                const std::string& fingerprint, const FeatureSource& source,
                                                const features::ExtractConfig& config, RejectedList& rejected);

}  // namespace allosaur::jobs
