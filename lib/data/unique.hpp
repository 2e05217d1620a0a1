#pragma once
#include <cstdint>
#include <random>
#include <string>

#include "core/files.hpp"

namespace allosaur::data {

/// 16 digits that no other process draws: for the names of files that several may write at once.
inline std::string unique_digits() {
  std::random_device source;
  return core::hash_hex((std::uint64_t{source()} << 32) + source());
}

}  // namespace allosaur::data
