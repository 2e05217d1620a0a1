#pragma once
#include <filesystem>
#include <functional>
#include <string>

#include "comm/communicator.hpp"

namespace allosaur::testing {

/// One number, or the norm of one tensor, beside that of the official implementation.
struct Quantity {
  std::string kind;  ///< "feature", "loss", "gradient", "norm", "change", "center"
  std::string name;
  double ours = 0, theirs = 0;
  double difference = 0;  ///< relative; of a tensor the norm of the difference
  double tolerance = 0;
  bool good() const noexcept { return difference <= tolerance; }  // false for NaN
};

/// Runs the recorded iterations in `folder` through the production step and reports every quantity that is recorded.
/// The format: `meta.json` (configuration with the official keys, and each iteration's schedule values, losses and
/// norms), `init.safetensors`, and numbered `batch_`, and where present `acts_`, `grads_` and `state_` files. Shapes
/// come from the files. Throws core::Error, which names the file, when something is missing or malformed, or there is
/// no iteration to run.
void replay(comm::Communicator& group, const std::filesystem::path& folder,
            const std::function<void(const Quantity&)>& report);

}  // namespace allosaur::testing
