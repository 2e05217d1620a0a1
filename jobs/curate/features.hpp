#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <ATen/core/Tensor.h>

#include "curation/descriptor.hpp"
#include "data/dataset.hpp"
#include "jobs/job.hpp"
#include "jobs/run_directory.hpp"

namespace allosaur::jobs {

/// Copy descriptors of this rank's share of the images.
struct CopyFeatures {
  at::Tensor views;                                  // f32 [rows, V, D], unit length
  at::Tensor area;                                   // i64 [rows] width times height; 0 = rejected
  std::optional<curation::Calibration> calibration;  // of the training-free descriptor
};

/// Collective. The training-free copy descriptor, fitted to the first `pool` images and calibrated on them. Descriptor
/// and features are kept in `directory`/features (see keep_rows()). Nothing when a stop was requested. `identity` is
/// that of the images; `range16`: see io::DecodeOptions.
std::optional<CopyFeatures> training_free_features(Context& context, const data::Dataset& images,
                                                   const std::string& identity, std::int64_t pool,
                                                   const std::array<int, 2>& range16,
                                                   const std::filesystem::path& directory, RejectedList& rejected);

}  // namespace allosaur::jobs
