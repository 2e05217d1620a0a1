#include "curation/sources.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace allosaur::curation {

void Sources::add(std::string name, std::shared_ptr<const data::Dataset> dataset) {
  ends_.push_back(size() + dataset->size());
  names_.push_back(std::move(name));
  datasets_.push_back(std::move(dataset));
}

Sources::Place Sources::find(std::int64_t index) const {
  if (index < 0 || index >= size()) throw std::logic_error("Sources: no such image");
  const auto source = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin());
  return {source, index - (source == 0 ? 0 : ends_[source - 1])};
}

data::Sample Sources::get(std::int64_t index) const {
  const Place place = find(index);
  data::Sample sample = datasets_[place.source]->get(place.index);
  sample.key = names_[place.source] + "/" + sample.key;
  sample.label = -1;
  return sample;
}

std::string Sources::key(std::int64_t index) const {
  const Place place = find(index);
  return names_[place.source] + "/" + datasets_[place.source]->key(place.index);
}

std::int64_t Sources::length(std::int64_t index) const {
  const Place place = find(index);
  return datasets_[place.source]->length(place.index);
}

}  // namespace allosaur::curation
