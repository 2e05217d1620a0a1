#pragma once
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "comm/communicator.hpp"
#include "data/dataset.hpp"

/// The index of an image source: one row an image, found by scanning, shared by the ranks of a node where it is large.
namespace allosaur::data {

/// How a file or folder looked when it was scanned: an index is used again while all of them still look so.
struct Stamp {
  std::string path;
  std::int64_t size = 0, changed = 0;       ///< bytes, and nanoseconds since 1970; both -1 for what is gone
  static constexpr std::int64_t never = 0;  ///< as `changed`: this stamp is never to hold
  bool operator==(const Stamp&) const = default;
};
Stamp stamp_of(const std::filesystem::path& path);

/// Rows of an index while they are gathered. An image is a whole file (its key is the path), or a part of a container.
class IndexRows {
 public:
  struct Part {
    std::int32_t container;  ///< number in `containers`
    std::int64_t begin, length;
    std::uint64_t hash;  ///< XXH3-64 of the bytes
  };
  std::vector<std::string> containers;   ///< files that hold many images
  std::vector<Rejected> problems;        ///< what could not be used
  std::vector<Rejected> label_problems;  ///< what was used without its class
  std::vector<Stamp> stamps;

  std::int64_t size() const noexcept { return static_cast<std::int64_t>(label_.size()); }
  std::string_view key(std::int64_t row) const;
  std::string_view class_name(std::int64_t row) const;  ///< "" = no class
  const std::vector<std::string>& class_names() const noexcept { return classes_; }
  void add(std::string_view key, std::string_view class_name);
  void add(std::string_view key, std::string_view class_name, const Part& part);

  /// The rows of `other` after these; its containers have the same numbers.
  void append(const IndexRows& other);
  /// Whole files by key; parts by container and place.
  void sort();
  /// Gives every row the class `rename(row)`.
  void rename_classes(const std::function<std::string(std::int64_t)>& rename);
  /// Numbers the classes: in the order of `names` where that lists them all (if need be up to a blank); else by value
  /// when all are numbers (so that class "7" is 7), else by name.
  void number_classes(const std::vector<std::string>& names);

  std::string serialise() const;
  static IndexRows deserialise(std::string_view bytes);

 private:
  friend class Index;
  template <class Self, class Visit>
  static void visit_columns(Self& self, Visit&& visit);
  std::int32_t class_number(std::string_view name);

  std::string keys_;
  std::vector<std::int64_t> key_end_, begin_, length_;
  std::vector<std::uint64_t> hash_;
  std::vector<std::int32_t> container_, label_;
  std::vector<std::string> classes_;
  std::unordered_map<std::string, std::int32_t> class_number_;
};

/// Values somewhere in memory, aligned or not (HDF5 places columns at any byte).
template <class T>
class Column {
 public:
  Column() = default;
  Column(const void* data, std::size_t size) : data_(static_cast<const char*>(data)), size_(size) {}
  explicit Column(const std::vector<T>& values) : Column(values.data(), values.size()) {}
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  const char* data() const noexcept { return data_; }
  T operator[](std::size_t at) const noexcept {
    T value;
    std::memcpy(&value, data_ + at * sizeof(T), sizeof(T));
    return value;
  }

 private:
  const char* data_ = nullptr;
  std::size_t size_ = 0;
};

/// An index to read from, in memory or mapped from a file (HDF5 with contiguous columns), which the ranks of a node
/// then share. 12 bytes a whole file and 40 bytes a part, besides the key. Thread-safe.
class Index {
 public:
  explicit Index(IndexRows rows);
  /// Maps `file`; throws core::StorageError when it is not a whole index.
  explicit Index(const std::filesystem::path& file);
  /// Writes the rows so that `file` appears whole or not at all.
  static void write(const IndexRows& rows, const std::filesystem::path& file);
  /// The stamps in `file`, or none where it is no whole index: then it is to be written anew.
  static std::vector<Stamp> stamps(const std::filesystem::path& file);

  std::int64_t size() const noexcept { return static_cast<std::int64_t>(label_.size()); }
  std::string_view key(std::int64_t row) const;
  std::int32_t label(std::int64_t row) const;  ///< -1 = none
  bool whole_files() const noexcept { return container_.empty(); }
  IndexRows::Part part(std::int64_t row) const;  ///< unless whole_files()
  const std::vector<std::string>& containers() const noexcept { return containers_; }
  const std::vector<std::string>& class_names() const noexcept { return class_names_; }
  const std::vector<Rejected>& problems() const noexcept { return problems_; }
  const std::vector<Rejected>& label_problems() const noexcept { return label_problems_; }

 private:
  std::size_t check(std::int64_t row) const;

  std::shared_ptr<const void> storage_;  // of the columns
  std::string_view keys_;
  Column<std::int64_t> key_end_, begin_, length_;
  Column<std::uint64_t> hash_;
  Column<std::int32_t> container_, label_;
  std::vector<std::string> containers_, class_names_;
  std::vector<Rejected> problems_, label_problems_;
};

/// A kind of source. Local members, without communication.
class Scanner {
 public:
  virtual ~Scanner() = default;
  /// What the ranks share out: called on rank 0, with about how many units are wanted. May add rows itself.
  virtual std::vector<std::string> units(int wanted, IndexRows& rows) = 0;
  /// Adds the rows of unit `number`, with stamps of all that they depend on; Stamp::never where reading failed.
  virtual void scan(const std::string& unit, int number, IndexRows& rows) const = 0;
  /// Called on rank 0 with the sorted rows of all units: what only the whole source tells about classes.
  virtual void decide_classes(IndexRows& /*rows*/) const {}
  /// Class names in an order that the source has fixed; empty when it has not.
  virtual std::vector<std::string> class_order() const { return {}; }
  /// Scanning reads every byte: worth keeping however few images there are.
  virtual bool expensive() const = 0;

  std::function<void()> alive = [] {};  ///< called by units() and scan() now and then
};

/// Collective. The index of `source` (an absolute path): kept under `places.cache` and used again while its stamps
/// hold, else scanned, units shared out over ranks. Small cheap ones are not kept, nor is any where the folder cannot
/// be written to or is not seen by all ranks. A kept index is never changed, since other jobs may be reading it: a new
/// one gets a new name, and those of this source that nobody has opened for 30 days are removed. Cost a rank: one
/// gather of the rows to rank 0, and one broadcast of them where the index is not kept.
std::shared_ptr<const Index> open_index(comm::Communicator& group, const std::filesystem::path& source,
                                        Scanner& scanner, const Places& places);

}  // namespace allosaur::data
