#include "search/top_k.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

namespace allosaur::search {
namespace {

// One block of similarities (1 MiB) stays in the second-level cache between the product and the scan over it.
constexpr std::int64_t kQueryBlock = 256, kDatabaseBlock = 1024;
constexpr std::int64_t kStride = 64;

struct Candidate {
  float similarity;
  std::int64_t index;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.similarity != b.similarity ? a.similarity > b.similarity : a.index < b.index;
}

/// The best k candidates seen so far, in a buffer of up to 2k that is cut back whenever it is full: constant time a
/// candidate, however many of them are equal.
class Best {
 public:
  void offer(Candidate candidate, std::size_t k) {
    held_.push_back(candidate);
    if (held_.size() == 2 * k) cut(k);
  }
  /// What a candidate must reach to have a chance.
  float bar() const { return bar_; }
  const std::vector<Candidate>& sorted(std::size_t k) {
    cut(k);
    std::sort(held_.begin(), held_.end(), better);
    return held_;
  }

 private:
  void cut(std::size_t k) {
    if (held_.size() < k) return;
    const auto last = held_.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(held_.begin(), last, held_.end(), better);
    bar_ = last->similarity;
    held_.resize(k);
  }

  std::vector<Candidate> held_;
  float bar_ = -std::numeric_limits<float>::infinity();
};

/// Branch-free, so that compilers use vector instructions: almost every stride holds nothing worth a closer look.
bool any_reaches(const float* begin, const float* end, float bar) {
  int found = 0;
  for (; begin != end; ++begin) found |= *begin >= bar ? 1 : 0;
  return found != 0;
}

void require_matrix(const at::Tensor& tensor, const char* name) {
  if (tensor.dim() != 2 || tensor.scalar_type() != at::kFloat || !tensor.device().is_cpu()) {
    throw std::logic_error(std::string("exact_top_k: ") + name + " must be a float32 matrix in host memory");
  }
}

/// Offers the rows of `slice`, which are the database rows from `first` on, to every query.
void scan(const at::Tensor& queries, const at::Tensor& slice, std::int64_t first, std::size_t k,
          std::vector<Best>& best, const std::function<void()>& after_block) {
  for (std::int64_t d = 0; d < slice.size(0); d += kDatabaseBlock) {
    const at::Tensor columns = slice.narrow(0, d, std::min(kDatabaseBlock, slice.size(0) - d)).t();
    for (std::int64_t q = 0; q < queries.size(0); q += kQueryBlock) {
      const at::Tensor block = at::mm(queries.narrow(0, q, std::min(kQueryBlock, queries.size(0) - q)), columns);
      const std::int64_t width = block.size(1);
      const float* values = block.const_data_ptr<float>();
      at::parallel_for(0, block.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          Best& mine = best[static_cast<std::size_t>(q + row)];
          const float* similarity = values + row * width;
          for (std::int64_t from = 0; from < width; from += kStride) {
            const std::int64_t to = std::min(from + kStride, width);
            if (!any_reaches(similarity + from, similarity + to, mine.bar())) continue;
            for (std::int64_t column = from; column < to; ++column) {
              if (similarity[column] >= mine.bar()) mine.offer({similarity[column], first + d + column}, k);
            }
          }
        }
      });
    }
    if (after_block) after_block();
  }
}

}  // namespace

Neighbours exact_top_k(comm::Communicator& group, const at::Tensor& queries, const at::Tensor& database, std::int64_t k,
                       const std::function<void()>& after_block) {
  require_matrix(queries, "queries");
  require_matrix(database, "database");
  if (queries.size(1) != database.size(1) || k < 1) throw std::logic_error("exact_top_k: widths differ, or k < 1");
  const std::vector<std::int64_t> counts = group.gather_all(database.size(0));
  std::vector<std::int64_t> firsts(counts.size());
  for (std::size_t r = 1; r < counts.size(); ++r) firsts[r] = firsts[r - 1] + counts[r - 1];
  const std::int64_t total = firsts.back() + counts.back();

  const auto kept = static_cast<std::size_t>(std::max<std::int64_t>(1, std::min(k, total)));
  std::vector<Best> best(static_cast<std::size_t>(queries.size(0)));
  const at::Tensor rows = queries.contiguous();
  at::Tensor here = database.contiguous();
  for (int shift = 0; shift < group.size(); ++shift) {
    const auto owner = static_cast<std::size_t>((group.rank() - shift + group.size()) % group.size());
    scan(rows, here, firsts[owner], kept, best, after_block);
    if (shift + 1 == group.size()) break;
    const std::size_t next = (owner + counts.size() - 1) % counts.size();
    at::Tensor incoming = at::empty({counts[next], database.size(1)}, database.options());
    group.ring_shift(here, incoming);
    here = std::move(incoming);
  }

  Neighbours result{at::full({queries.size(0), k}, -std::numeric_limits<float>::infinity(), at::kFloat),
                    at::full({queries.size(0), k}, -1, at::kLong)};
  auto* similarity = result.similarity.mutable_data_ptr<float>();
  auto* index = result.index.mutable_data_ptr<std::int64_t>();
  for (std::size_t q = 0; q < best.size(); ++q) {
    std::size_t slot = q * static_cast<std::size_t>(k);
    for (const Candidate& candidate : best[q].sorted(kept)) {
      similarity[slot] = candidate.similarity;
      index[slot] = candidate.index;
      ++slot;
    }
  }
  return result;
}

}  // namespace allosaur::search
