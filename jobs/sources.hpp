#pragma once
#include <filesystem>
#include <memory>

#include "data/dataset.hpp"
#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Declares what images are (data::declare_pixel_options), where indexes of sources are kept and where shards are
/// staged: `data.index_cache`, `data.stage`.
void declare_source_options(core::Options& options);

/// Collective. data::open_dataset() with these places; scanning shows that the rank is alive.
std::shared_ptr<const data::Dataset> open_images(Context& context, const std::filesystem::path& source,
                                                 data::Labels labels);

}  // namespace allosaur::jobs
