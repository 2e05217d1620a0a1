#pragma once
#include <stdexcept>
#include <string>

namespace allosaur::core {

/// Process exit codes of allosaur (README, "Exit codes").
enum class ExitCode : int { done = 0, usage = 2, input = 3, storage = 4, numerical = 5, peer = 6, preempted = 75 };

/// Base of every error allosaur throws on purpose. what() is a sentence that names the file, key or rank and says what
/// to do.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

/// Wrong command line or configuration.
struct UsageError : Error {
  explicit UsageError(const std::string& message) : Error(ExitCode::usage, message) {}
};
/// Input data that are missing, empty or broken.
struct InputError : Error {
  explicit InputError(const std::string& message) : Error(ExitCode::input, message) {}
};
/// A file of ours that cannot be written, or read back, or is damaged.
struct StorageError : Error {
  explicit StorageError(const std::string& message) : Error(ExitCode::storage, message) {}
};
/// Values that are not finite.
struct NumericalError : Error {
  explicit NumericalError(const std::string& message) : Error(ExitCode::numerical, message) {}
};
/// Another rank, the network or a device failed.
struct PeerError : Error {
  explicit PeerError(const std::string& message) : Error(ExitCode::peer, message) {}
};

}  // namespace allosaur::core
