#pragma once
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace allosaur::io {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A safetensors file: tensors in file order and the `__metadata__` string map.
struct Safetensors {
  NamedTensors tensors;  // contiguous CPU tensors that own their memory
  std::map<std::string, std::string> metadata;
  const at::Tensor* find(const std::string& name) const;  ///< nullptr when absent
};

/// Reads a file as hostile input: header length, JSON, dtypes, bounds, gaps and overlaps are checked. Throws
/// core::StorageError naming file and tensor.
Safetensors read_safetensors(const std::filesystem::path& file);
/// Writes atomically (temporary, fsync, rename).
void write_safetensors(const std::filesystem::path& file, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace allosaur::io
