#pragma once
#include <filesystem>

#include "io/safetensors.hpp"

namespace allosaur::io {

/// Whether a file is one of PyTorch's: by its ending (.pth or .pt), or by its first bytes.
bool is_torch_file(const std::filesystem::path& file);

/// The tensors of a file that torch.save wrote (PyTorch 1.6 or newer), as pickled_tensors() names them: in host memory,
/// whatever device they were on, contiguous; they share memory where they did so when they were saved. Reads a file as
/// hostile input: nothing of it is run, and every size is checked. Throws core::StorageError naming the file and, where
/// there is something, what to do.
NamedTensors read_torch_file(const std::filesystem::path& file);

}  // namespace allosaur::io
