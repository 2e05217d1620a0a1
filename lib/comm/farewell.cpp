#include "comm/farewell.hpp"

#include <chrono>
#include <thread>

#include <fmt/format.h>

#include "comm/mpi_support.hpp"

namespace allosaur::comm {
namespace {
constexpr int kTag = 1;
}

Farewell::Farewell() {
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
}

Farewell::~Farewell() {
  MPI_Comm_free(&comm_);
}

void Farewell::leave(std::int64_t collectives) {
  const int first = rank_ == 0 ? 1 : 0, end = rank_ == 0 ? size_ : 1;
  if (size_ == 1) return;
  for (int peer = first; peer < end; ++peer)
    check_mpi(MPI_Send(&collectives, 1, MPI_INT64_T, peer, kTag, comm_), "MPI_Send");
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      receive();
      if (std::ssize(left_) == end - first) return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void Farewell::expect_everyone(std::int64_t collective) {
  const std::lock_guard lock(mutex_);
  receive();
  for (const auto& [rank, collectives] : left_)
    if (collectives < collective)
      throw core::PeerError(fmt::format("Rank {} has ended while others wait for it in a collective.", rank));
}

void Farewell::receive() {
  while (true) {
    int found = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, kTag, comm_, &found, &status), "MPI_Iprobe");
    if (found == 0) return;
    check_mpi(MPI_Recv(&left_[status.MPI_SOURCE], 1, MPI_INT64_T, status.MPI_SOURCE, kTag, comm_, MPI_STATUS_IGNORE),
              "MPI_Recv");
  }
}

}  // namespace allosaur::comm
