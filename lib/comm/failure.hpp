#pragma once
#include <exception>
#include <string>

#include "core/log.hpp"

namespace allosaur::comm {

/// An exception as the process reports it. Exceptions that are not ours have code 1: an error inside the program.
struct Failure {
  int code = 0;
  std::string message;
};
Failure describe(const std::exception_ptr& error);

/// Writes one line, naming rank and host, to this rank's log and to stderr, and aborts the job. For errors that the
/// other ranks do not know of. Ends the process within seconds even if the log or MPI is stuck.
[[noreturn]] void abort_with(core::Log& log, const Failure& failure) noexcept;

}  // namespace allosaur::comm
