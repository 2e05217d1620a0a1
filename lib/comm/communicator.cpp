#include "comm/communicator.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "core/files.hpp"

namespace allosaur::comm {
namespace {

const char* name_of(ReduceOp op) {
  return std::array{"sum", "min", "max"}[static_cast<std::size_t>(op)];
}

void require(bool condition, const char* message) {
  if (!condition) throw std::logic_error(message);
}

std::int64_t total(std::span<const std::int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// A string as the pieces of these lengths that it was joined from.
std::vector<std::string> cut(const std::string& all, std::span<const std::int64_t> lengths) {
  std::vector<std::string> pieces;
  std::size_t begin = 0;
  for (const std::int64_t length : lengths) {
    pieces.push_back(all.substr(begin, static_cast<std::size_t>(length)));
    begin += static_cast<std::size_t>(length);
  }
  return pieces;
}

bool comparing_collectives() {
  if (const char* wish = std::getenv("ALLOSAUR_CHECK_COLLECTIVES")) return std::string_view(wish) == "1";
#ifdef ALLOSAUR_CHECK_COLLECTIVES
  return true;
#else
  return false;
#endif
}

}  // namespace

Request& Request::operator=(Request&& other) noexcept {
  const Request finished_first(std::move(*this));
  state_ = std::move(other.state_);
  return *this;
}

Request::~Request() {
  if (!state_) return;
  if (std::uncaught_exceptions() > 0) {
    state_->abandon();
    return;
  }
  try {
    state_->wait();
  } catch (...) {  // whoever wants to know calls wait()
  }
}

void Request::wait() {
  if (const auto state = std::move(state_)) state->wait();
}

Communicator::Communicator(int rank, int size) : rank_(rank), size_(size), comparing_(comparing_collectives()) {}

void Communicator::enter(const char* name, std::int64_t bytes_sent, DType dtype, std::int64_t count,
                         const std::string& detail) {
  {
    const std::lock_guard lock(mutex_);
    last_name_ = name;
    ++traffic_.calls;
    if (size_ > 1) traffic_.bytes_sent += bytes_sent;
  }
  if (comparing_ && size_ > 1) host().compare(fmt::format("{}({} x {}{})", name, comm::name_of(dtype), count, detail));
}

void Communicator::compare(const std::string& entered) {
  const auto hash = static_cast<std::int64_t>(core::hash_text(entered) >> 2);
  std::array<std::int64_t, 2> extremes{hash, -hash};
  do_all_reduce(std::span(extremes), ReduceOp::max).wait();
  if (extremes[0] != -extremes[1]) refuse("The ranks have entered different collectives", entered);
}

void Communicator::compare_counts(const char* name, std::span<const std::int64_t> sent,
                                  std::span<const std::int64_t> expected) {
  const std::vector<std::int64_t> one_each(sent.size(), 1);
  std::vector<std::int64_t> coming(sent.size());
  do_all_to_all(sent, one_each, std::span(coming), one_each);
  const auto [mine, theirs] = std::ranges::mismatch(expected, coming);
  std::int64_t differs = mine == expected.end() ? 0 : 1;
  const std::string line = differs == 0 ? "agrees"
                                        : fmt::format("expects {} elements from rank {}, which sends {}", *mine,
                                                      mine - expected.begin(), *theirs);
  do_all_reduce(std::span(&differs, 1), ReduceOp::max).wait();
  if (differs != 0) refuse(fmt::format("The ranks do not agree on the counts of {}", name), line);
}

void Communicator::refuse(const std::string& what, const std::string& line) {
  constexpr std::size_t kLength = 128;
  std::string mine = line, all(kLength * static_cast<std::size_t>(size_), ' ');
  mine.resize(kLength, ' ');
  do_all_gather(std::span(mine), std::span(all)).wait();
  std::vector<std::string> lines;
  for (int rank = 0; rank < size_; ++rank) {
    std::string text = all.substr(kLength * static_cast<std::size_t>(rank), kLength);
    text.erase(text.find_last_not_of(' ') + 1);
    lines.push_back(fmt::format("rank {} {}", rank, text));
  }
  const auto message = fmt::format("{}: {}.", what, fmt::join(lines, ", "));
  const auto error = std::make_exception_ptr(core::PeerError(message));
  set_agreed_failure(AgreedFailure{error, message});
  std::rethrow_exception(error);
}

std::int64_t Communicator::sequence() const {
  const std::lock_guard lock(mutex_);
  return traffic_.calls;
}

Traffic Communicator::traffic() const {
  const std::lock_guard lock(mutex_);
  return traffic_;
}

std::string Communicator::last_collective() const {
  const std::lock_guard lock(mutex_);
  return fmt::format("{} #{}", last_name_, traffic_.calls);
}

Request Communicator::start_all_reduce(Buffer data, ReduceOp op) {
  enter("all_reduce", 2 * data.bytes() * (size_ - 1) / size_, data.dtype, data.count, fmt::format(", {}", name_of(op)));
  return do_all_reduce(data, op);
}

Request Communicator::start_reduce_scatter(Buffer send, Buffer receive, ReduceOp op) {
  require(send.count == receive.count * size_ && send.dtype == receive.dtype,
          "reduce_scatter sends size() times as many elements as it receives, of the same type");
  enter("reduce_scatter", receive.bytes() * (size_ - 1), send.dtype, send.count, fmt::format(", {}", name_of(op)));
  return do_reduce_scatter(send, receive, op);
}

Request Communicator::start_all_gather(Buffer send, Buffer receive) {
  require(receive.count == send.count * size_ && send.dtype == receive.dtype,
          "all_gather receives size() times as many elements as it sends, of the same type");
  enter("all_gather", send.bytes() * (size_ - 1), send.dtype, send.count);
  return do_all_gather(send, receive);
}

Request Communicator::start_broadcast(Buffer data, int root) {
  require(root >= 0 && root < size_, "broadcast from a rank that is not in the group");
  const bool last = (rank_ + 1) % size_ == root;
  enter("broadcast", last ? 0 : data.bytes(), data.dtype, data.count, fmt::format(", root {}", root));
  return do_broadcast(data, root);
}

void Communicator::barrier() {
  enter("barrier", 0, DType::u8, 0);
  do_barrier();
}

void Communicator::all_gather_counts(Buffer send, Buffer receive, std::span<const std::int64_t> counts) {
  require(std::ssize(counts) == size_ && send.count == counts[static_cast<std::size_t>(rank_)] &&
              receive.count == total(counts) && send.dtype == receive.dtype,
          "all_gather_counts: the buffers do not have the sizes that the counts say");
  enter("all_gather_counts", send.bytes() * (size_ - 1), send.dtype, receive.count,
        fmt::format(", counts {}", core::hash_hex(core::hash_bytes(std::as_bytes(counts)))));
  do_all_gather_counts(send, receive, counts);
}

void Communicator::all_to_all(Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                              std::span<const std::int64_t> receive_counts) {
  require(std::ssize(send_counts) == size_ && std::ssize(receive_counts) == size_ && send.count == total(send_counts) &&
              receive.count == total(receive_counts) && send.dtype == receive.dtype,
          "all_to_all: the buffers do not have the sizes that the counts say");
  const std::int64_t kept =
      send_counts[static_cast<std::size_t>(rank_)] * static_cast<std::int64_t>(size_of(send.dtype));
  enter("all_to_all", send.bytes() - kept, send.dtype, 0);
  if (comparing_ && size_ > 1) host().compare_counts("all_to_all", send_counts, receive_counts);
  do_all_to_all(send, send_counts, receive, receive_counts);
}

void Communicator::ring_shift(Buffer send, Buffer receive) {
  require(send.dtype == receive.dtype, "ring_shift sends and receives different types");
  enter("ring_shift", send.bytes(), send.dtype, 0);
  if (comparing_ && size_ > 1) {
    std::vector<std::int64_t> sent(static_cast<std::size_t>(size_)), expected(sent.size());
    sent[static_cast<std::size_t>((rank_ + 1) % size_)] = send.count;
    expected[static_cast<std::size_t>((rank_ + size_ - 1) % size_)] = receive.count;
    host().compare_counts("ring_shift", sent, expected);
  }
  do_ring_shift(send, receive);
}

std::int64_t Communicator::sum(std::int64_t value) {
  host().all_reduce(std::span(&value, 1), ReduceOp::sum);
  return value;
}

std::int64_t Communicator::max(std::int64_t value) {
  host().all_reduce(std::span(&value, 1), ReduceOp::max);
  return value;
}

double Communicator::sum(double value) {
  host().all_reduce(std::span(&value, 1), ReduceOp::sum);
  return value;
}

std::int64_t Communicator::exclusive_scan(std::int64_t value) {
  const auto values = gather_all(value);
  return std::accumulate(values.begin(), values.begin() + rank_, std::int64_t{0});
}

std::vector<std::int64_t> Communicator::gather_all(std::int64_t value) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(size_));
  host().all_gather(std::span(&value, 1), std::span(values));
  return values;
}

std::string Communicator::broadcast(std::string text, int root) {
  auto length = static_cast<std::int64_t>(text.size());
  host().broadcast(std::span(&length, 1), root);
  text.resize(static_cast<std::size_t>(length));
  host().broadcast(std::span(text), root);
  return text;
}

std::vector<std::string> Communicator::gather_all(const std::string& text) {
  const auto lengths = gather_all(static_cast<std::int64_t>(text.size()));
  std::string all(static_cast<std::size_t>(total(lengths)), '\0');
  host().all_gather_counts(std::span(text), std::span(all), lengths);
  return cut(all, lengths);
}

std::vector<std::string> Communicator::gather(const std::string& text) {
  const auto lengths = gather_all(static_cast<std::int64_t>(text.size()));
  std::vector<std::int64_t> sent(lengths.size()), received(lengths.size());
  sent[0] = std::ssize(text);
  if (rank_ == 0) received = lengths;
  std::string all(static_cast<std::size_t>(total(received)), '\0');
  host().all_to_all(std::span(text), sent, std::span(all), received);
  return rank_ == 0 ? cut(all, lengths) : std::vector<std::string>();
}

std::vector<std::int64_t> Communicator::swap(std::span<const std::int64_t> values) {
  const std::vector<std::int64_t> one_each(values.size(), 1);
  std::vector<std::int64_t> received(values.size());
  host().all_to_all(values, one_each, std::span(received), one_each);
  return received;
}

}  // namespace allosaur::comm
