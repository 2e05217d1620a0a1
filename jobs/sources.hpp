#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "data/dataset.hpp"
#include "jobs/job.hpp"

namespace allosaur::jobs {

/// Declares what images are (data::declare_pixel_options), where indexes of sources are kept and where shards are
/// staged: `data.index_cache`, `data.stage`.
void declare_source_options(core::Options& options);

/// Collective. data::open_dataset() with these places; scanning shows that the rank is alive. A dry run neither reads
/// nor writes an index, and stages nothing.
std::shared_ptr<const data::Dataset> open_images(Context& context, const std::filesystem::path& source,
                                                 data::Labels labels);

/// Collective. A hash (16 hexadecimal digits) of the key, label and encoded length of every image in their order, to
/// recognise what was made of other images; the same on any number of ranks. Cost a rank: its share of the images, of
/// which single files are looked at on the disk.
std::string identify(Context& context, const data::Dataset& images);

}  // namespace allosaur::jobs
