#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "comm/communicator.hpp"

namespace allosaur::comm {

class Farewell;

/// Collectives over MPI, in host memory. A thread of the group's own executes them in issue order, because MPI
/// libraries make progress only inside calls: it is what overlaps communication with computing. It needs
/// MPI_THREAD_MULTIPLE. The thread polls, at first eagerly, then with short sleeps that leave the core to the
/// computation.
///
/// Cost per rank for W ranks: broadcast, barrier, all-gather and all-reduce of 32- and 64-bit numbers as MPI does them
/// (log W to W messages); reduce-scatter, 16-bit all-reduce, all-gather and all-to-all with counts send W-1 messages
/// straight to their destinations (twice for the all-reduce), and reductions use up to 8 MiB of memory for what they
/// receive.
class MpiCommunicator final : public Communicator {
 public:
  /// Collective. All ranks of the job. `farewell`, if given, tells when others have ended too early, and outlives the
  /// group.
  static std::unique_ptr<MpiCommunicator> world(Farewell* farewell = nullptr);
  /// Collective, unless an exception is unwinding: then the group is abandoned.
  ~MpiCommunicator() override;

  bool on_device() const noexcept override { return false; }
  std::unique_ptr<Communicator> split(int color, int key) override;
  bool waiting() const noexcept override;
  /// Longer messages are sent in pieces (default 1 GiB: MPI counts in int). The same on all ranks; tests lower it.
  void set_longest_message(std::int64_t bytes);

 private:
  struct Impl;
  explicit MpiCommunicator(std::unique_ptr<Impl> impl);
  Request issue(std::function<void()> work);

  Request do_all_reduce(Buffer data, ReduceOp op) override;
  Request do_reduce_scatter(Buffer send, Buffer receive, ReduceOp op) override;
  Request do_all_gather(Buffer send, Buffer receive) override;
  Request do_broadcast(Buffer data, int root) override;
  void do_barrier() override;
  void do_all_gather_counts(Buffer send, Buffer receive, std::span<const std::int64_t> counts) override;
  void do_all_to_all(Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                     std::span<const std::int64_t> receive_counts) override;
  void do_ring_shift(Buffer send, Buffer receive) override;

  std::unique_ptr<Impl> impl_;
};

}  // namespace allosaur::comm
