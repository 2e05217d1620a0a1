#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include <ATen/core/Tensor.h>

namespace allosaur::data {

/// Memory of batches, used again when the last tensor that refers to it has gone, wherever and on whatever thread that
/// happens: a batch may be kept as long as one likes. Fresh memory of this size would cost a page fault for every 4 KiB
/// of every batch. Thread-safe.
class BatchMemory : public std::enable_shared_from_this<BatchMemory> {
 public:
  /// Keeps up to `spare` unused blocks of each size.
  explicit BatchMemory(std::size_t spare) : spare_(spare) {}

  /// A contiguous tensor on the CPU, not initialised.
  at::Tensor take(at::IntArrayRef sizes, at::ScalarType type);

 private:
  struct Free {
    void operator()(std::byte* block) const noexcept { ::operator delete(block, kAlignment); }
  };
  using Block = std::unique_ptr<std::byte, Free>;
  static constexpr std::align_val_t kAlignment{64};

  void give_back(Block block, std::size_t bytes);

  const std::size_t spare_;
  std::mutex mutex_;
  std::map<std::size_t, std::vector<Block>> unused_;  // by size in bytes
};

}  // namespace allosaur::data
