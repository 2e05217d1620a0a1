#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/dataset.hpp"
#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Two images of a data set, to be shown beside each other.
struct ShownPair {
  std::int64_t left, right;
};

/// Collective. Draws some of the pairs of all ranks, spread evenly over them, as a contact sheet in PNG format; none:
/// no file. Images that cannot be decoded are left out. `range16`: see io::DecodeOptions.
void write_sheet(Context& context, const data::Dataset& images, const std::vector<ShownPair>& pairs,
                 const std::array<int, 2>& range16, const std::filesystem::path& file);

}  // namespace allosaur::jobs
