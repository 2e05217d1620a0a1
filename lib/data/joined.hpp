#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.hpp"

namespace allosaur::data {

/// Several data sets one after the other. Classes of the same name are one class.
class Joined final : public Dataset {
 public:
  /// Keys of the set are preceded by `name` and a slash; by nothing when it is empty.
  void add(std::string name, std::shared_ptr<const Dataset> dataset);
  /// Images of each set, in the order of add().
  std::vector<std::int64_t> sizes() const;

  std::int64_t size() const override { return ends_.empty() ? 0 : ends_.back(); }
  Sample get(std::int64_t index) const override;
  void read(std::int64_t index, Sample& into) const override;
  std::int64_t label(std::int64_t index) const override;
  std::string key(std::int64_t index) const override;
  std::int64_t length(std::int64_t index) const override;
  const std::vector<std::string>& class_names() const override { return class_names_; }
  std::vector<Rejected> problems() const override;

 private:
  struct Part {
    std::string prefix;
    std::shared_ptr<const Dataset> dataset;
    std::vector<std::int64_t> labels;  // the joined label of each of its own
  };
  struct Place {
    const Part& part;
    std::int64_t index;
  };
  Place find(std::int64_t index) const;

  std::vector<Part> parts_;
  std::vector<std::int64_t> ends_;
  std::vector<std::string> class_names_;
};

}  // namespace allosaur::data
