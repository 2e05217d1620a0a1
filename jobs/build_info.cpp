#include "jobs/build_info.hpp"

#include <torch/headeronly/version.h>

namespace allosaur::jobs {

BuildInfo build_info() {
  return {ALLOSAUR_VERSION, ALLOSAUR_REVISION, "LibTorch " TORCH_VERSION ", " ALLOSAUR_LIBRARIES};
}

}  // namespace allosaur::jobs
