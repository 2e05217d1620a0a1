#include "data/index.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <utility>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/thread_pool.hpp"
#include "data/kept_indexes.hpp"
#include "data/unique.hpp"
#include "io/hdf5.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFormat = "allosaur image index 2";
constexpr std::int64_t kSettled = 2'000'000'000;  // ns; a change this soon after a scan could leave the time as it was
constexpr int kStampThreads = 16;                 // they wait for the file system, not for the processor
constexpr std::int64_t kStampBlock = 10'000;      // between two signs of life
constexpr int kUnitsPerRank = 8;

std::int64_t now() {
  timespec time{};
  ::clock_gettime(CLOCK_REALTIME, &time);
  return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

// Bytes of IndexRows: every column after its number of elements.
void put(std::string& bytes, const void* data, std::size_t size) {
  bytes.append(static_cast<const char*>(data), size);
}
void put(std::string& bytes, std::int64_t value) {
  put(bytes, &value, sizeof value);
}
void put(std::string& bytes, const std::string& text) {
  put(bytes, std::ssize(text));
  bytes += text;
}
void put(std::string& bytes, const Rejected& problem) {
  put(bytes, problem.key);
  put(bytes, problem.reason);
}
void put(std::string& bytes, const Stamp& stamp) {
  put(bytes, stamp.path);
  put(bytes, stamp.size);
  put(bytes, stamp.changed);
}
template <class T>
void put(std::string& bytes, const std::vector<T>& values) {
  put(bytes, std::ssize(values));
  if constexpr (std::is_arithmetic_v<T>) {
    put(bytes, values.data(), values.size() * sizeof(T));
  } else {
    for (const T& value : values) put(bytes, value);
  }
}

/// Reads what put() wrote; the bytes come from another rank of this program.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  void get(std::int64_t& value) { std::memcpy(&value, take(sizeof value).data(), sizeof value); }
  void get(std::string& text) { text = take(count()); }
  template <class T>
  void get(std::vector<T>& values) {
    values.resize(count());
    if constexpr (std::is_arithmetic_v<T>) {
      if (!values.empty())
        std::memcpy(values.data(), take(values.size() * sizeof(T)).data(), values.size() * sizeof(T));
    } else {
      for (T& value : values) get(value);
    }
  }
  void get(Rejected& problem) {
    get(problem.key);
    get(problem.reason);
  }
  void get(Stamp& stamp) {
    get(stamp.path);
    get(stamp.size);
    get(stamp.changed);
  }

 private:
  std::size_t count() {
    std::int64_t value = 0;
    get(value);
    return static_cast<std::size_t>(value);
  }
  std::string_view take(std::size_t size) {
    if (size > bytes_.size()) throw std::logic_error("an index was cut on its way between ranks");
    const std::string_view part = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return part;
  }
  std::string_view bytes_;
};

template <class T>
std::vector<T> chosen(const std::vector<T>& values, const std::vector<std::int64_t>& order) {
  if (values.empty()) return {};
  std::vector<T> result;
  result.reserve(order.size());
  for (const std::int64_t row : order) result.push_back(values[static_cast<std::size_t>(row)]);
  return result;
}

/// A class name as the number it is, or -1.
std::int64_t as_number(const std::string& name) {
  std::int64_t value = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), value);
  return error == std::errc() && end == name.data() + name.size() && std::to_string(value) == name ? value : -1;
}

[[noreturn]] void fail_damaged() {
  throw core::StorageError("The index of the images is damaged; delete it, and it will be made again.");
}

/// A file mapped for reading.
class Mapping {
 public:
  explicit Mapping(const fs::path& file) {
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status {};
    if (descriptor >= 0 && ::fstat(descriptor, &status) == 0) {
      size_ = static_cast<std::size_t>(status.st_size);
      data_ = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    }
    const int error = errno;
    if (descriptor >= 0) ::close(descriptor);
    if (data_ == MAP_FAILED)
      throw core::StorageError(fmt::format("The index {} cannot be read: {}.", file.string(), std::strerror(error)));
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(data_, size_); }

  template <class T>
  Column<T> at(const io::hdf5::Group& root, const char* name) const {
    if (!root.has(name)) return {};
    const io::hdf5::Dataset column = root.dataset(name);
    const auto begin = static_cast<std::size_t>(column.file_offset());
    const auto count = static_cast<std::size_t>(column.shape().at(0));
    if (column.dtype() != comm::detail::dtype_trait<T>::value || begin > size_ || count > (size_ - begin) / sizeof(T)) {
      throw core::StorageError(fmt::format("The column `{}` of the index is damaged.", name));
    }
    return {static_cast<const char*>(data_) + begin, count};
  }

 private:
  void* data_ = MAP_FAILED;
  std::size_t size_ = 0;
};

std::vector<std::string> strings_in(const io::hdf5::Group& root, const char* name) {
  return root.has(name) ? root.strings(name) : std::vector<std::string>();
}

std::vector<Rejected> problems_in(const io::hdf5::Group& root, const std::string& name) {
  std::vector<Rejected> problems;
  const auto keys = strings_in(root, (name + "_key").c_str()), reasons = strings_in(root, (name + "_reason").c_str());
  for (std::size_t i = 0; i < std::min(keys.size(), reasons.size()); ++i) problems.push_back({keys[i], reasons[i]});
  return problems;
}

std::vector<Stamp> stamps_in(const io::hdf5::Group& root) {
  std::vector<Stamp> stamps;
  for (std::string& path : strings_in(root, "stamp_path")) stamps.push_back({std::move(path), 0, 0});
  std::vector<std::int64_t> numbers(2 * stamps.size());
  if (!stamps.empty()) root.dataset("stamp").read(std::span(numbers));
  for (std::size_t i = 0; i < stamps.size(); ++i) {
    stamps[i].size = numbers[2 * i];
    stamps[i].changed = numbers[2 * i + 1];
  }
  return stamps;
}

/// Whether everything still looks as it did; file systems are asked about many files at a time.
bool hold(const std::vector<Stamp>& stamps, const Places& places) {
  std::atomic<bool> same = !stamps.empty();
  for (std::int64_t begin = 0; same && begin < std::ssize(stamps); begin += kStampBlock) {
    core::parallel_for(kStampThreads, std::min(kStampBlock, std::ssize(stamps) - begin), [&](std::int64_t i) {
      const Stamp& stamp = stamps[static_cast<std::size_t>(begin + i)];
      if (same && stamp_of(stamp.path) != stamp) same = false;
    });
    if (places.progress) places.progress(0);
  }
  return same;
}

/// Collective. A kept index; nullptr on every rank when one cannot read it, or `file` is empty.
std::shared_ptr<const Index> open_everywhere(comm::Communicator& group, const fs::path& file) {
  std::shared_ptr<const Index> index;
  try {
    std::error_code error;
    if (!file.empty() && fs::exists(file, error)) index = std::make_shared<const Index>(file);
  } catch (const core::StorageError&) {
  }
  return group.max(index ? 0 : 1) == 0 ? index : nullptr;
}

/// Collective. Scans the source; the result is on rank 0.
IndexRows scan(comm::Communicator& group, Scanner& scanner, const Places& places) {
  const std::int64_t begin = now();
  IndexRows rows;
  scanner.alive = [&] {
    if (places.progress) places.progress(rows.size());
  };
  std::string text = comm::on_root(group, [&] {
    std::string list;
    put(list, scanner.units(kUnitsPerRank * group.size(), rows));
    return list;
  });
  std::vector<std::string> units;
  Reader(text).get(units);
  comm::coordinate(group, [&] {
    for (std::size_t i = static_cast<std::size_t>(group.rank()); i < units.size();
         i += static_cast<std::size_t>(group.size())) {
      scanner.scan(units[i], static_cast<int>(i), rows);
      scanner.alive();
    }
  });
  const std::vector<std::string> others = group.gather(group.rank() == 0 ? std::string() : rows.serialise());
  for (std::size_t rank = 1; rank < others.size(); ++rank) rows.append(IndexRows::deserialise(others[rank]));
  for (Stamp& stamp : rows.stamps) {
    if (stamp.changed > begin - kSettled) stamp.changed = Stamp::never;
  }
  rows.sort();
  if (group.rank() == 0) scanner.decide_classes(rows);
  rows.number_classes(scanner.class_order());
  return rows;
}

}  // namespace

Stamp stamp_of(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return {path.string(), -1, -1};
  // A folder's size says nothing that its time does not, and differs between file systems.
  return {path.string(), S_ISDIR(status.st_mode) ? 0 : status.st_size,
          status.st_mtim.tv_sec * 1'000'000'000LL + status.st_mtim.tv_nsec};
}

std::string_view IndexRows::key(std::int64_t row) const {
  const auto at = static_cast<std::size_t>(row);
  const auto begin = static_cast<std::size_t>(at == 0 ? 0 : key_end_[at - 1]);
  return std::string_view(keys_).substr(begin, static_cast<std::size_t>(key_end_[at]) - begin);
}

std::string_view IndexRows::class_name(std::int64_t row) const {
  const std::int32_t label = label_[static_cast<std::size_t>(row)];
  return label < 0 ? std::string_view() : classes_[static_cast<std::size_t>(label)];
}

std::int32_t IndexRows::class_number(std::string_view name) {
  if (name.empty()) return -1;
  const auto [entry, added] = class_number_.emplace(name, static_cast<std::int32_t>(classes_.size()));
  if (added) classes_.emplace_back(name);
  return entry->second;
}

void IndexRows::add(std::string_view key, std::string_view class_name) {
  keys_ += key;
  key_end_.push_back(std::ssize(keys_));
  label_.push_back(class_number(class_name));
}

void IndexRows::add(std::string_view key, std::string_view class_name, const Part& part) {
  add(key, class_name);
  container_.push_back(part.container);
  begin_.push_back(part.begin);
  length_.push_back(part.length);
  hash_.push_back(part.hash);
}

void IndexRows::append(const IndexRows& other) {
  for (std::int64_t row = 0; row < other.size(); ++row) add(other.key(row), other.class_name(row));
  const auto join = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
  join(container_, other.container_);
  join(begin_, other.begin_);
  join(length_, other.length_);
  join(hash_, other.hash_);
  join(problems, other.problems);
  join(label_problems, other.label_problems);
  join(stamps, other.stamps);
}

void IndexRows::sort() {
  std::vector<std::int64_t> order(label_.size());
  std::iota(order.begin(), order.end(), 0);
  if (container_.empty()) {
    std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return key(a) < key(b); });
  } else {
    std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      const auto i = static_cast<std::size_t>(a), j = static_cast<std::size_t>(b);
      return std::pair(container_[i], begin_[i]) < std::pair(container_[j], begin_[j]);
    });
  }
  std::string keys;
  std::vector<std::int64_t> key_end;
  keys.reserve(keys_.size());
  key_end.reserve(key_end_.size());
  for (const std::int64_t row : order) {
    keys += key(row);
    key_end.push_back(std::ssize(keys));
  }
  keys_ = std::move(keys);
  key_end_ = std::move(key_end);
  container_ = chosen(container_, order);
  begin_ = chosen(begin_, order);
  length_ = chosen(length_, order);
  hash_ = chosen(hash_, order);
  label_ = chosen(label_, order);
}

void IndexRows::rename_classes(const std::function<std::string(std::int64_t)>& rename) {
  IndexRows renamed;
  std::vector<std::int32_t> labels;
  labels.reserve(label_.size());
  for (std::int64_t row = 0; row < size(); ++row) labels.push_back(renamed.class_number(rename(row)));
  label_ = std::move(labels);
  classes_ = std::move(renamed.classes_);
  class_number_ = std::move(renamed.class_number_);
}

void IndexRows::number_classes(const std::vector<std::string>& names) {
  std::vector<std::string> numbered = classes_;
  std::sort(numbered.begin(), numbered.end());
  const auto has_all = [&](std::vector<std::string> listed) {
    std::sort(listed.begin(), listed.end());
    return !listed.empty() && std::includes(listed.begin(), listed.end(), numbered.begin(), numbered.end());
  };
  std::vector<std::string> first_words = names;
  for (std::string& name : first_words) name.resize(std::min(name.find(' '), name.size()));
  std::int64_t largest = -1;
  const bool numbers = std::all_of(classes_.begin(), classes_.end(), [&](const std::string& name) {
    largest = std::max(largest, as_number(name));
    return as_number(name) >= 0 && as_number(name) < 1'000'000;
  });
  if (has_all(names)) {
    numbered = names;
  } else if (has_all(first_words)) {
    numbered = first_words;
  } else if (numbers) {
    numbered.clear();
    for (std::int64_t value = 0; value <= largest; ++value) numbered.push_back(std::to_string(value));
  }
  std::map<std::string_view, std::int32_t> number_of;
  for (std::size_t i = 0; i < numbered.size(); ++i) number_of.emplace(numbered[i], static_cast<std::int32_t>(i));
  std::vector<std::int32_t> renumbered;
  for (const std::string& name : classes_) renumbered.push_back(number_of.at(name));
  for (std::int32_t& label : label_) label = label < 0 ? -1 : renumbered[static_cast<std::size_t>(label)];
  classes_ = std::move(numbered);
}

template <class Self, class Visit>
void IndexRows::visit_columns(Self& self, Visit&& visit) {
  visit(self.containers);
  visit(self.problems);
  visit(self.label_problems);
  visit(self.stamps);
  visit(self.keys_);
  visit(self.key_end_);
  visit(self.begin_);
  visit(self.length_);
  visit(self.hash_);
  visit(self.container_);
  visit(self.label_);
  visit(self.classes_);
}

std::string IndexRows::serialise() const {
  std::string bytes;
  visit_columns(*this, [&](const auto& column) { put(bytes, column); });
  return bytes;
}

IndexRows IndexRows::deserialise(std::string_view bytes) {
  IndexRows rows;
  Reader reader(bytes);
  visit_columns(rows, [&](auto& column) { reader.get(column); });
  return rows;
}

Index::Index(IndexRows rows) {
  const auto owned = std::make_shared<const IndexRows>(std::move(rows));
  keys_ = owned->keys_;
  key_end_ = Column<std::int64_t>(owned->key_end_);
  begin_ = Column<std::int64_t>(owned->begin_);
  length_ = Column<std::int64_t>(owned->length_);
  hash_ = Column<std::uint64_t>(owned->hash_);
  container_ = Column<std::int32_t>(owned->container_);
  label_ = Column<std::int32_t>(owned->label_);
  containers_ = owned->containers;
  class_names_ = owned->classes_;
  problems_ = owned->problems;
  label_problems_ = owned->label_problems;
  storage_ = owned;
}

Index::Index(const fs::path& file) {
  const auto mapping = std::make_shared<const Mapping>(file);
  const io::hdf5::File hdf5(file, io::hdf5::Access::read);
  const io::hdf5::Group root = hdf5.root();
  const auto keys = mapping->at<char>(root, "keys");
  keys_ = {keys.data(), keys.size()};
  key_end_ = mapping->at<std::int64_t>(root, "key_end");
  begin_ = mapping->at<std::int64_t>(root, "begin");
  length_ = mapping->at<std::int64_t>(root, "length");
  hash_ = mapping->at<std::uint64_t>(root, "hash");
  container_ = mapping->at<std::int32_t>(root, "container");
  label_ = mapping->at<std::int32_t>(root, "label");
  const bool parts = !container_.empty();
  for (const std::size_t rows : {begin_.size(), length_.size(), hash_.size(), container_.size()}) {
    if (rows != (parts ? label_.size() : 0) || key_end_.size() != label_.size())
      throw core::StorageError(fmt::format("The columns of the index {} differ in length.", file.string()));
  }
  containers_ = strings_in(root, "containers");
  class_names_ = strings_in(root, "class_names");
  problems_ = problems_in(root, "problem");
  label_problems_ = problems_in(root, "label_problem");
  storage_ = mapping;
}

void Index::write(const IndexRows& rows, const fs::path& file) {
  core::make_directory(file.parent_path());
  const core::TemporaryFile temporary(fmt::format("{}.{}.tmp", file.string(), unique_digits()));
  io::hdf5::File hdf5(temporary.path(), io::hdf5::Access::create);
  io::hdf5::Group root = hdf5.root();
  const auto column = [&](const char* name, const auto& values) {
    if (values.empty()) return;
    const std::span all(values.data(), values.size());
    const std::int64_t shape[] = {std::ssize(values)};
    io::hdf5::Dataset dataset = root.create_dataset(name, comm::Buffer(all).dtype, shape);
    dataset.write(all);
    dataset.close();
  };
  const auto texts = [&](const std::string& name, const std::vector<std::string>& values) {
    if (!values.empty()) root.write_strings(name, values);
  };
  const auto problems = [&](const std::string& name, const std::vector<Rejected>& values) {
    std::vector<std::string> keys, reasons;
    for (const Rejected& problem : values) {
      keys.push_back(problem.key);
      reasons.push_back(problem.reason);
    }
    texts(name + "_key", keys);
    texts(name + "_reason", reasons);
  };
  column("keys", rows.keys_);
  column("key_end", rows.key_end_);
  column("begin", rows.begin_);
  column("length", rows.length_);
  column("hash", rows.hash_);
  column("container", rows.container_);
  column("label", rows.label_);
  texts("containers", rows.containers);
  texts("class_names", rows.classes_);
  problems("problem", rows.problems);
  problems("label_problem", rows.label_problems);
  std::vector<std::string> paths;
  std::vector<std::int64_t> numbers;
  for (const Stamp& stamp : rows.stamps) {
    paths.push_back(stamp.path);
    numbers.insert(numbers.end(), {stamp.size, stamp.changed});
  }
  texts("stamp_path", paths);
  column("stamp", numbers);
  root.set_attribute("format", kFormat);
  root = {};  // a file is closed after its groups
  hdf5.close();
  core::publish_file(temporary.path(), file);
}

std::vector<Stamp> Index::stamps(const fs::path& file) {
  std::error_code error;
  if (!fs::exists(file, error)) return {};
  try {
    const io::hdf5::File hdf5(file, io::hdf5::Access::read);
    const io::hdf5::Group root = hdf5.root();
    if (!root.has_attribute("format") || root.text_attribute("format") != kFormat) return {};
    return stamps_in(root);
  } catch (const core::StorageError&) {
    return {};
  }
}

std::size_t Index::check(std::int64_t row) const {
  if (row < 0 || row >= size()) throw std::logic_error(fmt::format("There is no image {} of {}.", row, size()));
  return static_cast<std::size_t>(row);
}

std::int32_t Index::label(std::int64_t row) const {
  const std::int32_t label = label_[check(row)];
  if (label < -1 || label >= std::ssize(class_names_)) fail_damaged();
  return label;
}

std::string_view Index::key(std::int64_t row) const {
  const std::size_t at = check(row);
  const auto begin = at == 0 ? 0 : key_end_[at - 1], end = key_end_[at];
  if (begin < 0 || end < begin || end > std::ssize(keys_)) fail_damaged();
  return keys_.substr(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
}

IndexRows::Part Index::part(std::int64_t row) const {
  const std::size_t at = check(row);
  return {container_[at], begin_[at], length_[at], hash_[at]};
}

std::shared_ptr<const Index> open_index(comm::Communicator& group, const fs::path& source, Scanner& scanner,
                                        const Places& places) {
  const KeptIndexes kept(places.cache, source);
  const std::string found = comm::on_root(group, [&] {
    const fs::path file = places.cache.empty() ? fs::path() : kept.newest();
    if (file.empty() || !hold(Index::stamps(file), places)) return std::string();
    KeptIndexes::mark_opened(file);
    return file.string();
  });
  if (auto index = open_everywhere(group, found)) return index;

  IndexRows rows = scan(group, scanner, places);
  const auto not_kept = [&](const std::string& reason) {
    if (group.rank() == 0 && places.warn) {
      places.warn(
          fmt::format("The index of {} is not kept for other jobs: {} Set data.index_cache to a folder that "
                      "all nodes share, or to none.",
                      source.string(), reason));
    }
  };
  const std::string written = comm::on_root(group, [&] {
    if (places.cache.empty() || (!scanner.expensive() && rows.size() < places.kept_from)) return std::string();
    try {
      kept.remove_forgotten();
      return kept.add(rows).string();
    } catch (const core::StorageError& error) {
      not_kept(error.what());
      return std::string();
    }
  });
  if (auto index = open_everywhere(group, written)) return index;
  if (!written.empty()) not_kept(fmt::format("{} is not seen by all ranks.", written));
  const std::string bytes = group.broadcast(group.rank() == 0 ? rows.serialise() : std::string(), 0);
  if (group.rank() != 0) rows = IndexRows::deserialise(bytes);
  return std::make_shared<const Index>(std::move(rows));
}

}  // namespace allosaur::data
