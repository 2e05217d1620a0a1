#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.hpp"

namespace allosaur::data {

/// One encoded image. Decoding is left to the reader, who knows what size is needed.
struct Sample {
  std::vector<std::byte> bytes;
  std::int64_t label = -1;  ///< class, -1 = none
  std::string key;          ///< path relative to the source's root: names the sample in messages and results
};

/// Random access to encoded images. Const members are thread-safe.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  virtual Sample get(std::int64_t index) const = 0;          ///< throws core::InputError when it cannot be read
  virtual std::int64_t label(std::int64_t index) const = 0;  ///< -1 = none; without reading the image
  virtual std::string key(std::int64_t index) const = 0;
  /// Encoded bytes of the image, cheaply where the source knows them: packing sizes its files by it.
  virtual std::int64_t length(std::int64_t index) const { return static_cast<std::int64_t>(get(index).bytes.size()); }
  virtual const std::vector<std::string>& class_names() const = 0;  ///< label -> name; empty when unlabelled
};

/// Collective (rank 0 scans, all learn the result). Opens a source by what it is: a folder of images, or the index file
/// / folder of packed shards written by `allosaur pack` or `allosaur curate` (with `labelled`, its stored labels). A
/// folder is searched recursively, through symbolic links, for image files by their extension; names that begin with
/// a dot are skipped; images are ordered by path. With `labelled`, the class of an image is its top folder, classes
/// sorted by name. Throws core::InputError naming the path when it is missing, unreadable, or holds no image, and when
/// `labelled` is asked of a source without classes.
std::shared_ptr<const Dataset> open_dataset(comm::Communicator& group, const std::filesystem::path& source,
                                            bool labelled);

/// The rows of a data set in the given order.
std::shared_ptr<const Dataset> subset(std::shared_ptr<const Dataset> dataset, std::vector<std::int64_t> indices);

}  // namespace allosaur::data
