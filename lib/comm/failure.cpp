#include "comm/failure.hpp"

#include <signal.h>
#include <unistd.h>

#include <cstdio>

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "comm/environment.hpp"
#include "core/error.hpp"
#include "core/files.hpp"

namespace allosaur::comm {

Failure describe(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const core::Error& known) {
    return {static_cast<int>(known.code()), known.what()};
  } catch (const c10::OutOfMemoryError& full) {
    return {static_cast<int>(core::ExitCode::peer),
            fmt::format("the device's memory is full; train.micro_batch_size, student.checkpoint_activations or more "
                        "ranks make a run smaller: {}",
                        full.what_without_backtrace())};
  } catch (const c10::AcceleratorError& broken) {
    return {static_cast<int>(core::ExitCode::peer),
            fmt::format("the device failed: {}", broken.what_without_backtrace())};
  } catch (const std::exception& other) {
    return {1, other.what()};
  } catch (...) {
    return {1, "unknown exception"};
  }
}

void abort_with(core::Log& log, const Failure& failure) noexcept {
  ::signal(SIGALRM, SIG_DFL);
  ::alarm(5);
  const std::string line = fmt::format("rank {} on {}: {}", log.rank(), core::host_name(), failure.message);
  log.error("{}", line);
  log.flush();
  if (log.rank() != 0) fmt::print(stderr, "error: {}\n", line);  // the log of rank 0 does so itself
  std::fflush(stderr);
  Environment::abort(failure.code);
}

}  // namespace allosaur::comm
