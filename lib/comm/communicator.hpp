#pragma once
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "comm/buffer.hpp"

namespace allosaur::comm {

enum class ReduceOp : std::uint8_t { sum, min, max };

/// A collective under way. Move-only. wait() returns when the result is in place, or throws what went wrong; the
/// destructor waits too (and swallows). While an exception is unwinding it gives the other ranks a second, then
/// abandons the group: its thread lets go of the buffers and every later collective of the group throws.
class Request {
 public:
  struct State {  // what a backend implements
    virtual ~State() = default;
    virtual void wait() = 0;
    virtual void abandon() noexcept = 0;  // as the destructor does while unwinding
  };
  Request() = default;
  explicit Request(std::unique_ptr<State> state) : state_(std::move(state)) {}
  Request(Request&&) noexcept = default;
  Request& operator=(Request&& other) noexcept;
  ~Request();
  void wait();
  bool pending() const noexcept { return state_ != nullptr; }

 private:
  std::unique_ptr<State> state_;
};

/// What this rank has sent through a group since the start, for the communication report. Bytes are those of the
/// bandwidth-optimal (ring) algorithms, for W ranks and n bytes of data: all-reduce 2 n (W-1)/W; reduce-scatter (n
/// sent) and all-gather (n received) n (W-1)/W; broadcast n, except for the last rank of the ring; the others what goes
/// to other ranks.
struct Traffic {
  std::int64_t calls = 0;
  std::int64_t bytes_sent = 0;
};

/// Some of the numbers [0, total): first, ..., last - 1.
struct Range {
  std::int64_t first = 0, last = 0;
  std::int64_t size() const noexcept { return last - first; }
};

/// An exception that every rank of a group has thrown, each its own, knowing of the others (see coordinate()).
struct AgreedFailure {
  std::exception_ptr error;  ///< this rank's
  std::string message;       ///< the same on all ranks: what failed and where
};

/// A group of ranks. Every member below that says "collective" must be called by every rank of the group in the same
/// order. Requests are executed in issue order. With ALLOSAUR_CHECK_COLLECTIVES (a build option, or 0 or 1 in the
/// environment) every collective first compares what the ranks have entered; where that differs, all throw
/// core::PeerError.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }
  /// This rank's part of [0, total), when the ranks take contiguous, nearly equal parts in their order.
  Range share(std::int64_t total) const noexcept { return {total * rank_ / size_, total * (rank_ + 1) / size_}; }
  /// MPI: false, buffers in host memory. NCCL: true, CUDA memory, ordered by the current stream.
  virtual bool on_device() const noexcept = 0;

  // Collective, asynchronous. Buffers must stay alive and untouched until the request has been waited for.
  [[nodiscard]] Request start_all_reduce(Buffer data, ReduceOp op);  ///< in place
  /// `send` holds size() equal parts; `receive` (one part) becomes part rank() of the reduction over ranks.
  /// On the CPU the parts are added in rank order, float16 and bfloat16 in float32. `receive` may be that part of
  /// `send`.
  [[nodiscard]] Request start_reduce_scatter(Buffer send, Buffer receive, ReduceOp op);
  /// `receive` holds size() parts; `send` may alias its own part of `receive`.
  [[nodiscard]] Request start_all_gather(Buffer send, Buffer receive);
  [[nodiscard]] Request start_broadcast(Buffer data, int root);

  // Collective, blocking.
  void barrier();
  void all_reduce(Buffer data, ReduceOp op) { start_all_reduce(data, op).wait(); }
  void reduce_scatter(Buffer send, Buffer receive, ReduceOp op) { start_reduce_scatter(send, receive, op).wait(); }
  void all_gather(Buffer send, Buffer receive) { start_all_gather(send, receive).wait(); }
  void broadcast(Buffer data, int root) { start_broadcast(data, root).wait(); }
  /// Counts are in elements, one a rank; parts lie one after the other in rank order.
  void all_gather_counts(Buffer send, Buffer receive, std::span<const std::int64_t> counts);
  void all_to_all(Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                  std::span<const std::int64_t> receive_counts);
  /// Sends to rank+1 and receives from rank-1 (cyclic); sizes may differ from rank to rank.
  void ring_shift(Buffer send, Buffer receive);

  // Collective conveniences, built on the above.
  std::int64_t sum(std::int64_t value);
  std::int64_t max(std::int64_t value);
  double sum(double value);
  /// Sum of the values of the ranks before this one (0 on rank 0).
  std::int64_t exclusive_scan(std::int64_t value);
  std::vector<std::int64_t> gather_all(std::int64_t value);  ///< one value a rank, on every rank
  std::string broadcast(std::string text, int root);
  std::vector<std::string> gather_all(const std::string& text);  ///< one string a rank, on every rank
  std::vector<std::string> gather(const std::string& text);      ///< one string a rank on rank 0, none elsewhere
  /// Value r goes to rank r; gives what every rank has for this one. For the counts of an all_to_all.
  std::vector<std::int64_t> swap(std::span<const std::int64_t> values);

  /// Collective. A new group of the ranks with the same `color`, ordered by `key`.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  /// The group that takes host memory: this one, or for NCCL the MPI group it was made from. The conveniences above,
  /// which work on host memory, go through it.
  virtual Communicator& host() noexcept { return *this; }

  Traffic traffic() const;
  /// Name and number of the last collective entered, for the watchdog's report: "all_reduce #123". Thread-safe.
  std::string last_collective() const;
  /// Whether this process is waiting for other ranks in a collective, of this group or one split from it. Thread-safe.
  virtual bool waiting() const noexcept { return false; }
  /// The last failure that all ranks of this group have thrown together.
  const std::optional<AgreedFailure>& agreed_failure() const noexcept { return agreed_failure_; }
  void set_agreed_failure(std::optional<AgreedFailure> failure) { agreed_failure_ = std::move(failure); }

 protected:
  Communicator(int rank, int size);
  /// Every collective begins here: numbers, counts and, when asked to, compares it over ranks (which is itself
  /// collective).
  void enter(const char* name, std::int64_t bytes_sent, DType dtype, std::int64_t count,
             const std::string& detail = {});
  std::int64_t sequence() const;

 private:
  virtual Request do_all_reduce(Buffer data, ReduceOp op) = 0;
  virtual Request do_reduce_scatter(Buffer send, Buffer receive, ReduceOp op) = 0;
  virtual Request do_all_gather(Buffer send, Buffer receive) = 0;
  virtual Request do_broadcast(Buffer data, int root) = 0;
  virtual void do_barrier() = 0;
  virtual void do_all_gather_counts(Buffer send, Buffer receive, std::span<const std::int64_t> counts) = 0;
  virtual void do_all_to_all(Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                             std::span<const std::int64_t> receive_counts) = 0;
  virtual void do_ring_shift(Buffer send, Buffer receive) = 0;

  void compare(const std::string& entered);
  /// What every rank sends to each, and expects from each.
  void compare_counts(const char* name, std::span<const std::int64_t> sent, std::span<const std::int64_t> expected);
  /// Throws core::PeerError on all ranks, with each rank's line.
  [[noreturn]] void refuse(const std::string& what, const std::string& line);

  int rank_, size_;
  bool comparing_;
  mutable std::mutex mutex_;  // of the next two
  const char* last_name_ = "no collective";
  Traffic traffic_;
  std::optional<AgreedFailure> agreed_failure_;
};

}  // namespace allosaur::comm
