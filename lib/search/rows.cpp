#include "search/rows.hpp"

#include <stdexcept>

namespace allosaur::search {

RowMap::RowMap(comm::Communicator& group, std::int64_t rows) : group_(group), edges_{0} {
  for (const std::int64_t count : group.gather_all(rows)) edges_.push_back(edges_.back() + count);
}

std::vector<std::int64_t> RowMap::count_by_owner(std::span<const std::int64_t> ascending_rows) const {
  if (!ascending_rows.empty() && (ascending_rows.front() < 0 || ascending_rows.back() >= total())) {
    throw std::logic_error("RowMap: a row outside the table");
  }
  std::vector<std::int64_t> counts;
  auto from = ascending_rows.begin();
  for (std::size_t rank = 0; rank + 1 < edges_.size(); ++rank) {
    const auto to = std::lower_bound(from, ascending_rows.end(), edges_[rank + 1]);
    counts.push_back(to - from);
    from = to;
  }
  return counts;
}

}  // namespace allosaur::search
