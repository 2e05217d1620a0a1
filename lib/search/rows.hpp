#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "comm/communicator.hpp"

namespace allosaur::search {

/// Rows of a table split over ranks: numbered over ranks in rank order, each rank holding any number of them. Brings
/// values to the rank that owns a row, and back.
class RowMap {
 public:
  /// Collective. `rows` of this rank.
  RowMap(comm::Communicator& group, std::int64_t rows);

  std::int64_t first() const noexcept { return edges_[static_cast<std::size_t>(group_.rank())]; }
  std::int64_t rows() const noexcept { return edges_[static_cast<std::size_t>(group_.rank()) + 1] - first(); }
  std::int64_t total() const noexcept { return edges_.back(); }
  bool owns(std::int64_t row) const noexcept { return row >= first() && row < first() + rows(); }

  /// Collective. Sends every record to the rank that owns its member `row`; gives the records that came to this rank,
  /// in order of sender, then row. Record is trivially copyable. Cost a rank: 2 messages to each rank, its records
  /// once.
  template <class Record>
  std::vector<Record> deliver(std::vector<Record> records) const {
    std::stable_sort(records.begin(), records.end(), [](const Record& a, const Record& b) { return a.row < b.row; });
    std::vector<std::int64_t> rows(records.size());
    for (std::size_t i = 0; i < records.size(); ++i) rows[i] = records[i].row;
    const std::vector<std::int64_t> sent = count_by_owner(rows);
    return exchange<Record>(records, sent, group_.swap(sent));
  }

  /// Collective. The values of `rows` (any rows, in any order, repeated or not), where `mine` holds one value for each
  /// row of this rank. Cost a rank: 3 messages to each rank, 8 + sizeof(T) bytes for each distinct row asked for or
  /// answered.
  template <class T>
  std::vector<T> fetch(const std::vector<T>& mine, std::span<const std::int64_t> rows) const {
    std::vector<std::int64_t> distinct(rows.begin(), rows.end());
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    const std::vector<std::int64_t> asked = count_by_owner(distinct), wanted = group_.swap(asked);
    const std::vector<std::int64_t> questions = exchange<std::int64_t>(distinct, asked, wanted);
    std::vector<T> replies(questions.size());
    for (std::size_t i = 0; i < questions.size(); ++i)
      replies[i] = mine[static_cast<std::size_t>(questions[i] - first())];
    const std::vector<T> answers = exchange<T>(replies, wanted, asked);
    std::vector<T> values(rows.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto place = std::lower_bound(distinct.begin(), distinct.end(), rows[i]) - distinct.begin();
      values[i] = answers[static_cast<std::size_t>(place)];
    }
    return values;
  }

 private:
  /// Of ascending rows, how many belong to each rank; throws std::logic_error for a row that does not exist.
  std::vector<std::int64_t> count_by_owner(std::span<const std::int64_t> ascending_rows) const;

  template <class T>
  std::vector<T> exchange(const std::vector<T>& values, std::vector<std::int64_t> sent,
                          std::vector<std::int64_t> received) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::int64_t total = 0;
    for (const std::int64_t count : received) total += count;
    std::vector<T> incoming(static_cast<std::size_t>(total));
    for (std::int64_t& count : sent) count *= static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t& count : received) count *= static_cast<std::int64_t>(sizeof(T));
    const auto bytes = std::as_writable_bytes(std::span(incoming));
    group_.all_to_all(std::as_bytes(std::span(values)), sent, bytes, received);
    return incoming;
  }

  comm::Communicator& group_;
  std::vector<std::int64_t> edges_;  // rank r holds rows [edges_[r], edges_[r + 1])
};

}  // namespace allosaur::search
