#include "data/loader_memory.hpp"

#include <utility>

#include <ATen/ATen.h>

namespace allosaur::data {

at::Tensor BatchMemory::take(at::IntArrayRef sizes, at::ScalarType type) {
  const std::size_t bytes = static_cast<std::size_t>(c10::multiply_integers(sizes)) * c10::elementSize(type);
  Block block;
  {
    const std::lock_guard lock(mutex_);
    std::vector<Block>& unused = unused_[bytes];
    if (!unused.empty()) {
      block = std::move(unused.back());
      unused.pop_back();
    }
  }
  if (!block) block.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
  const auto give_back_block = [pool = shared_from_this(), bytes](void* memory) {
    pool->give_back(Block(static_cast<std::byte*>(memory)), bytes);
  };
  return at::from_blob(block.release(), sizes, give_back_block, at::TensorOptions(type));
}

void BatchMemory::give_back(Block block, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  std::vector<Block>& unused = unused_[bytes];
  if (unused.size() < spare_) unused.push_back(std::move(block));
}

}  // namespace allosaur::data
