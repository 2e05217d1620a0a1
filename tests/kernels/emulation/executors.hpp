#pragma once
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "kernels/emulation/emulation.hpp"
#include "kernels/kernels.hpp"
#include "testing.hpp"

namespace allosaur::testing {

/// One way of running kernels: the host's, a GPU's, or the source of the CUDA kernels on the host, emulated.
struct Executor {
  std::string name;
  bool gpu = false;
  std::optional<emulation::Order> emulated = std::nullopt;
  /// Returns when the kernel has ended. Pointers are to memory of the host; with `gpu`, to Arrays or memory of the GPU.
  template <class Kernel>
  void operator()(const Kernel& kernel) const;
};

/// The host, the emulation in every order, and a GPU where the build and the machine have one.
const std::vector<Executor>& executors();

/// Memory that the host and the GPU see.
void* allocate(std::size_t bytes);
void release(void* memory);

template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(testing::allocate(n * sizeof(T))); }
  void deallocate(T* memory, std::size_t) { release(memory); }
  bool operator==(const Allocator&) const = default;
};

template <class T>
using Array = std::vector<T, Allocator<T>>;

}  // namespace allosaur::testing

/// A test case whose body runs once for each executor, which it calls `run`.
#define ALLOSAUR_KERNEL_TEST(title) ALLOSAUR_KERNEL_TEST_OF(DOCTEST_ANONYMOUS(kernel_test_), title)
#define ALLOSAUR_KERNEL_TEST_OF(body, title)                        \
  static void body(const ::allosaur::testing::Executor& run);       \
  TEST_CASE(title) {                                                \
    for (const auto& executor : ::allosaur::testing::executors()) { \
      CAPTURE(executor.name);                                       \
      body(executor);                                               \
    }                                                               \
  }                                                                 \
  static void body(const ::allosaur::testing::Executor& run)
