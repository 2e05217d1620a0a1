#pragma once
#include <mpi.h>

#include <string>

#include "core/error.hpp"

namespace allosaur::comm {

/// Throws core::PeerError, naming the call and MPI's reason, unless `code` is MPI_SUCCESS. All our communicators return
/// errors instead of ending the job.
inline void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  std::string reason(MPI_MAX_ERROR_STRING, '\0');
  int length = 0;
  MPI_Error_string(code, reason.data(), &length);
  reason.resize(static_cast<std::size_t>(length));
  throw core::PeerError(std::string(call) + " failed: " + reason + ".");
}

}  // namespace allosaur::comm
