#include "data/joined.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace allosaur::data {

void Joined::add(std::string name, std::shared_ptr<const Dataset> dataset) {
  ends_.push_back(size() + dataset->size());
  std::vector<std::int64_t> labels;
  for (const std::string& class_name : dataset->class_names()) {
    const auto found = std::find(class_names_.begin(), class_names_.end(), class_name);
    labels.push_back(found - class_names_.begin());
    if (found == class_names_.end()) class_names_.push_back(class_name);
  }
  if (!name.empty()) name += '/';
  parts_.push_back({std::move(name), std::move(dataset), std::move(labels)});
}

std::vector<std::int64_t> Joined::sizes() const {
  std::vector<std::int64_t> sizes;
  for (const Part& part : parts_) sizes.push_back(part.dataset->size());
  return sizes;
}

Joined::Place Joined::find(std::int64_t index) const {
  if (index < 0 || index >= size()) throw std::logic_error("Joined: no such image");
  const auto part = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin());
  return {parts_[part], index - (part == 0 ? 0 : ends_[part - 1])};
}

Sample Joined::get(std::int64_t index) const {
  Sample sample;
  read(index, sample);
  return sample;
}

void Joined::read(std::int64_t index, Sample& into) const {
  const Place place = find(index);
  place.part.dataset->read(place.index, into);
  into.key.insert(0, place.part.prefix);
  into.label = label(index);
}

std::int64_t Joined::label(std::int64_t index) const {
  const Place place = find(index);
  const std::int64_t own = place.part.dataset->label(place.index);
  return own < 0 ? -1 : place.part.labels.at(static_cast<std::size_t>(own));
}

std::string Joined::key(std::int64_t index) const {
  const Place place = find(index);
  return place.part.prefix + place.part.dataset->key(place.index);
}

std::int64_t Joined::length(std::int64_t index) const {
  const Place place = find(index);
  return place.part.dataset->length(place.index);
}

std::vector<Rejected> Joined::problems() const {
  std::vector<Rejected> all;
  for (const Part& part : parts_) {
    for (Rejected& problem : part.dataset->problems()) all.push_back({part.prefix + problem.key, problem.reason});
  }
  return all;
}

}  // namespace allosaur::data
