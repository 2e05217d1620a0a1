#pragma once
#include <mpi.h>

#include <cstdint>
#include <map>
#include <mutex>

namespace allosaur::comm {

/// Says that this process is done with its work, and learns it of others: one message each way between rank 0 and every
/// other rank, with the number of collectives of the world group that the leaving rank took part in. Without it, a rank
/// that leaves too early would keep the others waiting until the watchdog speaks.
class Farewell {
 public:
  Farewell();  ///< collective over all ranks
  ~Farewell();
  Farewell(const Farewell&) = delete;
  Farewell& operator=(const Farewell&) = delete;

  /// Tells rank 0 (rank 0: everyone) and waits, however long, until it has been told in turn.
  void leave(std::int64_t collectives);
  /// Throws core::PeerError when a rank is known to have left before the collective with this number. Thread-safe.
  void expect_everyone(std::int64_t collective);

 private:
  void receive();

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::mutex mutex_;
  std::map<int, std::int64_t> left_;  // rank, its number of collectives
};

}  // namespace allosaur::comm
