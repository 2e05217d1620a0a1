#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <c10/core/ScalarType.h>

namespace allosaur::io {

/// A tensor as the pickle of a torch.save describes it: a view of a storage, which is a record of its own in the file.
/// Nothing of it has been checked but its types.
struct PickledTensor {
  std::string storage;  // the record's name
  at::ScalarType type{};
  std::int64_t count = 0;                    // elements of the storage
  std::int64_t offset = 0;                   // elements
  std::vector<std::int64_t> sizes, strides;  // elements
};

/// The tensors of a pickled dictionary, in order. Tensors in dictionaries within it have the names of both, joined by a
/// dot; what is neither is passed over. Nothing is run: the few Python names that tensors need are known, any other is
/// a core::StorageError that says so, as is a pickle that is damaged. `file` is for messages.
std::vector<std::pair<std::string, PickledTensor>> pickled_tensors(std::string_view pickle,
                                                                   const std::filesystem::path& file);

}  // namespace allosaur::io
