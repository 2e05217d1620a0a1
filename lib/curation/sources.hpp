#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/dataset.hpp"

namespace allosaur::curation {

/// Several data sets one after the other; keys are preceded by the name of their source: "pool/a/1.jpg". Unlabelled.
class Sources final : public data::Dataset {
 public:
  void add(std::string name, std::shared_ptr<const data::Dataset> dataset);

  std::int64_t size() const override { return ends_.empty() ? 0 : ends_.back(); }
  data::Sample get(std::int64_t index) const override;
  std::int64_t label(std::int64_t) const override { return -1; }
  std::string key(std::int64_t index) const override;
  std::int64_t length(std::int64_t index) const override;
  const std::vector<std::string>& class_names() const override { return no_classes_; }

 private:
  struct Place {
    std::size_t source;
    std::int64_t index;
  };
  Place find(std::int64_t index) const;

  std::vector<std::string> names_;
  std::vector<std::shared_ptr<const data::Dataset>> datasets_;
  std::vector<std::int64_t> ends_;
  std::vector<std::string> no_classes_;
};

}  // namespace allosaur::curation
