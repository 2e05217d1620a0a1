#pragma once
// Include this last: LibTorch's headers have fatal CHECK macros of their own, which must not replace doctest's.
#include <filesystem>

#include "comm/communicator.hpp"
#include "core/log.hpp"

#undef CHECK
#include <doctest/doctest.h>

namespace allosaur::testing {

/// All ranks of the test, which is started by mpirun. Test cases run on every rank in the same order; a case whose
/// CHECK fails on any rank fails the test, and rank 0 names the ranks. Between collectives use CHECK; REQUIRE (which
/// leaves the case) only for facts that are the same on all ranks.
comm::Communicator& world();

core::Log& log();

/// tests/data of the source tree.
std::filesystem::path data_directory();

/// Collective. A fresh empty folder, the same on all ranks; removed at the end of its life (collective, unless
/// unwinding).
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace allosaur::testing

/// Leaves the test case, with a message, when the test runs on fewer than `n` ranks.
#define ALLOSAUR_NEEDS_RANKS(n)                                                             \
  do {                                                                                      \
    if (::allosaur::testing::world().size() < (n)) {                                        \
      if (::allosaur::testing::world().rank() == 0) MESSAGE("skipped: needs " #n " ranks"); \
      return;                                                                               \
    }                                                                                       \
  } while (false)
