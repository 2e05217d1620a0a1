#pragma once
#include <memory>
#include <span>

#include "comm/communicator.hpp"

namespace allosaur::comm {

/// Collectives over NCCL, in CUDA memory of one device per rank (CUDA builds only). They run on a stream of the group's
/// own: after the work that is in the current stream when they are issued, and before what enters the current stream
/// after wait() (which does not block the host). 16-bit sums are rounded at every addition. Strings and single numbers
/// travel over MPI.
class NcclCommunicator final : public Communicator {
 public:
  /// Collective over `bootstrap` (MPI), which must outlive the group. Throws core::PeerError when the device or NCCL
  /// fails.
  NcclCommunicator(Communicator& bootstrap, int device);
  /// Collective; after a failure, or while unwinding, it aborts what is under way instead.
  ~NcclCommunicator() override;

  bool on_device() const noexcept override { return true; }
  Communicator& host() noexcept override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  /// Throws core::PeerError when NCCL has reported an error in the background. Thread-safe; for Watchdog::watch().
  void throw_if_failed() const;

 private:
  struct Impl;
  explicit NcclCommunicator(std::unique_ptr<Impl> impl);
  template <class Call>
  Request issue(const char* name, Call&& call);
  void exchange(const char* name, Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                std::span<const std::int64_t> receive_counts);

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
