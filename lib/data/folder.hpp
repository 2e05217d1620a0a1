#pragma once
#include <filesystem>
#include <memory>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"

namespace allosaur::data {

/// Collective. A folder of image files, as open_dataset() describes it. Rank 0 scans; the list reaches the others as
/// one string (cost per rank: one broadcast of the paths' bytes, which is also what each rank keeps in memory).
std::shared_ptr<const Dataset> open_folder(comm::Communicator& group, const std::filesystem::path& folder,
                                           bool labelled);

}  // namespace allosaur::data
