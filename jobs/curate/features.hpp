#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "curation/descriptor.hpp"
#include "data/joined.hpp"
#include "features/extract.hpp"
#include "jobs/job.hpp"
#include "model/vision_transformer.hpp"

namespace allosaur::jobs {

/// Copy descriptors of this rank's images, in the rows [size * rank / ranks, size * (rank + 1) / ranks).
struct CopyFeatures {
  at::Tensor views;                                  // f32 [rows, V, D], unit length
  at::Tensor pixels;                                 // i64 [rows]; 0 = rejected
  std::optional<curation::Calibration> calibration;  // of the training-free descriptor
};

/// Class tokens of this rank's images, in the same split of their sources.
struct SimilarityFeatures {
  at::Tensor rows;  // f32 [rows, D], unit length; zero where the image was rejected
  std::int64_t first = 0;
};

/// Collective. The training-free copy descriptor, fitted to the first `pool` images and calibrated on them. Taken from
/// `file` when that was written for the same images, else computed and kept there. Nothing when a stop was requested.
std::optional<CopyFeatures> training_free_features(Context& context, const data::Joined& sources, std::int64_t pool,
                                                   const std::filesystem::path& directory);

/// Collective. Class tokens of a backbone for the images of `sources`, kept below `directory` under `name`, likewise.
SimilarityFeatures backbone_features(Context& context, model::VisionTransformer& backbone, const data::Joined& sources,
                                     const features::ExtractConfig& config, const std::filesystem::path& directory,
                                     const std::string& name);

/// Collective. Recognises a list of images by their keys.
std::string identify(comm::Communicator& world, const data::Dataset& dataset);

}  // namespace allosaur::jobs
