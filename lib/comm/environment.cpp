#include "comm/environment.hpp"

#include <mpi.h>

#include <cstdlib>
#include <exception>
#include <string>

#include <fmt/format.h>

#include "comm/failure.hpp"
#include "comm/farewell.hpp"
#include "comm/mpi_communicator.hpp"
#include "comm/mpi_support.hpp"
#include "core/error.hpp"

namespace allosaur::comm {
namespace {

/// Initialises MPI before anything that uses it is made.
struct Library {
  Library(int& argc, char**& argv) {
    int provided = 0;
    check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    threads = provided >= MPI_THREAD_MULTIPLE;
  }
  ~Library() { MPI_Finalize(); }
  bool threads = false;
};

/// Ranks that the launcher says it has started, 1 if it says nothing.
int launched_ranks() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
    if (const char* text = std::getenv(name)) return std::atoi(text);
  return 1;
}

}  // namespace

struct Environment::Impl {
  Impl(int& argc, char**& argv) : library(argc, argv) {
    world = MpiCommunicator::world(&farewell);
    MPI_Comm node = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    check_mpi(MPI_Comm_rank(node, &node_rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(node, &node_size), "MPI_Comm_size");
    MPI_Comm_free(&node);
  }

  Library library;
  Farewell farewell;
  std::unique_ptr<MpiCommunicator> world;
  int node_rank = 0, node_size = 1;
};

Environment::Environment(int& argc, char**& argv) : impl_(std::make_unique<Impl>(argc, argv)) {}

Environment::~Environment() {
  if (std::uncaught_exceptions() > 0) abort(1);
  try {
    impl_->farewell.leave(impl_->world->traffic().calls);
  } catch (...) {
    abort(static_cast<int>(core::ExitCode::peer));
  }
}

Communicator& Environment::world() noexcept {
  return *impl_->world;
}
int Environment::node_rank() const noexcept {
  return impl_->node_rank;
}
int Environment::node_size() const noexcept {
  return impl_->node_size;
}

void Environment::check_launch() const {
  if (!impl_->library.threads)
    throw core::UsageError("This MPI library was built without MPI_THREAD_MULTIPLE, which allosaur needs.");
  if (const int launched = launched_ranks(); impl_->world->size() == 1 && launched > 1)
    throw core::UsageError(
        fmt::format("The launcher has started {} processes, but MPI knows only this one: each would do the whole job. "
                    "Use the mpirun of the MPI library that allosaur was built with, or srun --mpi=pmix.",
                    launched));
}

void Environment::abort(int code) noexcept {
  int initialised = 0, finalised = 0;
  MPI_Initialized(&initialised);
  MPI_Finalized(&finalised);
  if (initialised != 0 && finalised == 0) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

int run_guarded(Environment& environment, core::Log& log, const std::function<int()>& body) {
  const Communicator& world = environment.world();
  try {
    environment.check_launch();
    return body();
  } catch (...) {
    const std::exception_ptr error = std::current_exception();
    Failure failure = describe(error);
    const auto& agreed = world.agreed_failure();
    const bool shared = agreed && agreed->error == error;
    if (!shared && world.size() > 1) abort_with(log, failure);
    log.error("{}", shared ? agreed->message : failure.message);
    log.flush();
    return failure.code;
  }
}

}  // namespace allosaur::comm
