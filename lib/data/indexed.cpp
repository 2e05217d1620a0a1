#include <utility>

#include <fmt/format.h>

#include "core/error.hpp"
#include "core/files.hpp"
#include "data/containers.hpp"
#include "data/sources.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

class IndexedImages final : public Dataset {
 public:
  IndexedImages(std::shared_ptr<const Index> index, fs::path root, std::vector<std::string> containers, bool labelled)
      : index_(std::move(index)), root_(std::move(root)), containers_(std::move(containers)), labelled_(labelled) {}

  std::int64_t size() const override { return index_->size(); }
  std::string key(std::int64_t row) const override { return std::string(index_->key(row)); }
  std::int64_t label(std::int64_t row) const override { return labelled_ ? index_->label(row) : -1; }
  const std::vector<std::string>& class_names() const override { return labelled_ ? index_->class_names() : none_; }
  std::vector<Rejected> problems() const override {
    std::vector<Rejected> problems = index_->problems();
    if (labelled_) problems.insert(problems.end(), index_->label_problems().begin(), index_->label_problems().end());
    return problems;
  }

  std::int64_t length(std::int64_t row) const override {
    if (!index_->whole_files()) return index_->part(row).length;
    std::error_code error;
    const std::uintmax_t bytes = fs::file_size(root_ / index_->key(row), error);
    return error ? 0 : static_cast<std::int64_t>(bytes);  // get() says what is wrong with it
  }

  Sample get(std::int64_t row) const override {
    Sample sample;
    read(row, sample);
    return sample;
  }

  void read(std::int64_t row, Sample& into) const override {
    into.key = index_->key(row);
    into.label = label(row);
    if (index_->whole_files()) return read_image_file(root_ / into.key, into.bytes);
    const IndexRows::Part part = index_->part(row);
    containers_.read(part.container, part.begin, part.length, into.key, into.bytes);
    if (core::hash_bytes(into.bytes) != part.hash) {
      throw core::InputError(fmt::format("The bytes of {} in {} are not those that were indexed.", into.key,
                                         index_->containers().at(static_cast<std::size_t>(part.container))));
    }
  }

 private:
  std::shared_ptr<const Index> index_;
  fs::path root_;
  Containers containers_;
  bool labelled_;
  std::vector<std::string> none_;
};

}  // namespace

std::shared_ptr<const Dataset> indexed_images(std::shared_ptr<const Index> index, fs::path root,
                                              std::vector<std::string> containers, bool labelled) {
  return std::make_shared<const IndexedImages>(std::move(index), std::move(root), std::move(containers), labelled);
}

}  // namespace allosaur::data
