#pragma once
#include <string>

namespace allosaur::jobs {

/// What this program was built from, fixed when the build was configured.
struct BuildInfo {
  std::string version;    ///< of allosaur
  std::string revision;   ///< of its git repository; "unknown" outside one
  std::string libraries;  ///< "LibTorch 2.11.0, HDF5 1.10.8, ..."
};
BuildInfo build_info();

}  // namespace allosaur::jobs
