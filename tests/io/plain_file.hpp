#pragma once
#include <filesystem>
#include <fstream>
#include <string>

namespace allosaur::testing {

/// Replaces a file's content, without waiting for the disk: for tests that damage files hundreds of times.
inline void overwrite(const std::filesystem::path& file, const std::string& content) {
  std::ofstream(file, std::ios::binary) << content;
}

}  // namespace allosaur::testing
