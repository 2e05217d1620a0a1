#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"
#include "data/pixels.hpp"

namespace allosaur::data {

/// Least, middle and largest of some numbers.
struct Spread {
  std::int64_t least = 0, median = 0, largest = 0;
};

/// What a look at every image of a source finds.
struct Inspection {
  std::int64_t images = 0;       ///< that can be used
  std::int64_t bytes = 0;        ///< of these, encoded
  Spread width, height, length;  ///< pixels, pixels, bytes
  /// Kinds, such as "jpeg, 3 channels" or "tiff, 1 channel of 16 bits", with their number of images.
  std::map<std::string, std::int64_t> kinds;
  std::vector<std::int64_t> class_sizes;  ///< images of each class; empty where there are none
  std::int64_t unlabelled = 0;
  /// Files of the same bytes as an earlier one: (file, earlier file), in the order of the source.
  std::vector<std::pair<std::string, std::string>> duplicates;
  std::vector<Rejected> broken;  ///< in the order of the source, after its problems()
};

/// Collective. Reads every image and decodes it to `pixels`, so that what training would reject is broken here too; a
/// contiguous range of them a rank, on `threads` threads. `progress(done)` is called after each block with this rank's
/// count. The result is on rank 0, elsewhere empty. Cost a rank: reading and decoding its images, 48 bytes an image
/// sent to rank 0, which keeps them until the end.
Inspection inspect(comm::Communicator& group, const Dataset& dataset, const PixelConfig& pixels, int threads,
                   const std::function<void(std::int64_t)>& progress);

}  // namespace allosaur::data
