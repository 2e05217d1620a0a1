#pragma once
// Runs CUDA kernels on the host, one block after the other, the threads of a block as fibers. A warp runs until all its
// threads wait for a barrier or have ended, then the next one: as far ahead of the others as any GPU could let it, so
// that a missing barrier shows. Shared memory is filled with NaN before each block.
#include <cstdint>
#include <functional>
#include <source_location>

namespace allosaur::emulation {

/// In which blocks, the warps of a block and the threads of a warp take their turns.
enum class Order : std::uint8_t { forward, reverse, shuffled };
void set_order(Order order);

/// Calls `thread` for every thread of every block of gridDim and blockDim. Throws std::logic_error, a sentence, if the
/// threads of a block wait for different barriers, some end while others wait, or one shuffles with threads that are
/// not there.
void run_grid(const std::function<void()>& thread);

// For the threads:
void barrier(std::source_location where);
std::uint64_t shuffle_xor(unsigned mask, std::uint64_t value, int lanes, std::source_location where);

}  // namespace allosaur::emulation
