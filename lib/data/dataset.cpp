#include "data/dataset.hpp"

#include <utility>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "data/folder.hpp"
#include "data/packed.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

class Subset final : public Dataset {
 public:
  Subset(std::shared_ptr<const Dataset> dataset, std::vector<std::int64_t> indices)
      : dataset_(std::move(dataset)), indices_(std::move(indices)) {}

  std::int64_t size() const override { return static_cast<std::int64_t>(indices_.size()); }
  Sample get(std::int64_t index) const override { return dataset_->get(at(index)); }
  std::int64_t label(std::int64_t index) const override { return dataset_->label(at(index)); }
  std::string key(std::int64_t index) const override { return dataset_->key(at(index)); }
  std::int64_t length(std::int64_t index) const override { return dataset_->length(at(index)); }
  const std::vector<std::string>& class_names() const override { return dataset_->class_names(); }

 private:
  std::int64_t at(std::int64_t index) const { return indices_.at(static_cast<std::size_t>(index)); }

  std::shared_ptr<const Dataset> dataset_;
  std::vector<std::int64_t> indices_;
};

/// The packed index at or in `source`, or nothing when `source` is a plain folder.
std::string find_packed_index(const fs::path& source) {
  std::error_code error;
  const fs::file_status status = fs::status(source, error);
  if (status.type() == fs::file_type::not_found) {
    throw core::InputError(fmt::format("The image source {} does not exist.", source.string()));
  }
  if (error)
    throw core::InputError(fmt::format("The image source {} cannot be read: {}.", source.string(), error.message()));
  if (fs::is_directory(status))
    return fs::exists(source / kPackedIndexName, error) ? source / kPackedIndexName : fs::path();
  if (source.extension() == ".h5") return source;
  throw core::InputError(
      fmt::format("The image source {} is neither a folder nor the index (.h5) of packed images.", source.string()));
}

}  // namespace

std::shared_ptr<const Dataset> open_dataset(comm::Communicator& group, const fs::path& source, bool labelled) {
  const std::string index = comm::on_root(group, [&] { return find_packed_index(source); });
  return index.empty() ? open_folder(group, source, labelled) : open_packed(group, index, labelled);
}

std::shared_ptr<const Dataset> subset(std::shared_ptr<const Dataset> dataset, std::vector<std::int64_t> indices) {
  return std::make_shared<Subset>(std::move(dataset), std::move(indices));
}

}  // namespace allosaur::data
