#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
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

/// A sample, or a part of a source, that could not be read or decoded.
struct Rejected {
  std::string key, reason;
};

/// Random access to encoded images. Const members are thread-safe.
class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  virtual Sample get(std::int64_t index) const = 0;  ///< throws core::InputError when it cannot be read
  /// The same into the memory of `into`, for who reads many. After an error its content is unspecified.
  virtual void read(std::int64_t index, Sample& into) const { into = get(index); }
  virtual std::int64_t label(std::int64_t index) const = 0;  ///< -1 = none; without reading the image
  virtual std::string key(std::int64_t index) const = 0;
  /// Encoded bytes of the image, cheaply where the source knows them: packing sizes its files by it.
  virtual std::int64_t length(std::int64_t index) const { return static_cast<std::int64_t>(get(index).bytes.size()); }
  virtual const std::vector<std::string>& class_names() const = 0;  ///< label -> name; empty when unlabelled
  /// What the source held that cannot be used: damaged containers, malformed rows of a list. The same on every rank.
  virtual std::vector<Rejected> problems() const { return {}; }
};

/// What is asked of the classes of a source.
enum class Labels : std::uint8_t {
  ignored,
  required,    ///< images without a class are left out
  where_known  ///< they stay, with label -1
};

/// Where things about sources are kept, and who is told of progress.
struct Places {
  std::filesystem::path cache;  ///< folder of the indexes of sources, the same for all ranks; empty: none are kept
  /// Folder on a disk of each node that containers (tar shards, packed images) are copied to and read from; empty: they
  /// are read where they are.
  std::filesystem::path stage;
  /// Called now and then while a source is being scanned or copied, with the images (files) done by this rank.
  std::function<void(std::int64_t)> progress;
  /// Told on rank 0 why an index could not be kept; the source is used nevertheless. May be empty.
  std::function<void(const std::string&)> warn = {};
  std::int64_t kept_from = 100'000;  ///< images: whole files fewer than these are listed again in a second
};

/// Collective. Opens a source by what it is:
/// - a folder of images, searched to any depth and through symbolic links for image files by their extension; names
///   that begin with a dot are skipped; ordered by path. The class of an image is its top folder; that of an image in
///   none is in a list beside a folder NAME: `NAME.txt` (file and class a line) or `LOC_NAME_solution.csv` (ImageNet).
/// - the index file or folder of packed shards that `allosaur pack` or `allosaur curate` wrote, with the stored labels.
/// - one tar file, a pattern `shard-{000..127}.tar`, or a folder that holds tar files and no images beside them:
///   WebDataset shards, whose samples are neighbouring members that share a name up to the first dot; the class is in
///   `.cls`, else in `.json` (cls, label or class), else in `.txt`, unless the texts of all shards hardly ever come
///   twice: these are captions. Where no sample has such a member, the class is the top folder in the tar, or the
///   tar's name for members in none (ImageNet-22k: a tar a class).
/// - a list: .txt (a path a line, or a path and a class), .csv or .tsv (path, then the class), .json or .jsonl
///   (what may stand in them is said at scan_list() in sources.hpp); paths are relative to the folder that the list is
///   in.
/// Classes are numbered by name, or by value where all are numbers; a file `labels.txt` (name first in each line, up
/// to a comma, a tab or a blank) in the source's folder or the one above fixes their order. Where labels are required,
/// images without a class are left out and are among the problems(); in a folder of images they are an error. Throws
/// core::InputError naming the path when it is missing, unreadable, or holds no image, and when labels are required of
/// a source without classes. Cost: open_index() (index.hpp); the work of scanning is shared out over ranks.
std::shared_ptr<const Dataset> open_dataset(comm::Communicator& group, const std::filesystem::path& source,
                                            Labels labels, const Places& places = {});

/// The rows of a data set in the given order.
std::shared_ptr<const Dataset> subset(std::shared_ptr<const Dataset> dataset, std::vector<std::int64_t> indices);

}  // namespace allosaur::data
