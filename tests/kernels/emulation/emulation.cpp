#include "kernels/emulation/emulation.hpp"

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <link.h>
#include <ucontext.h>

#include "kernels/emulation/cuda_runtime.h"

namespace allosaur::emulation {

namespace {

constexpr unsigned kWarp = 32;
constexpr std::size_t kStackBytes = 64 * 1024;

enum class State : std::uint8_t { ready, barrier, shuffle, ended };

/// Where a fiber goes on: what GCC's __builtin_setjmp keeps. Unlike swapcontext it makes no system call.
using Place = void* [5];

struct Fiber {
  State state = State::ready;
  std::source_location where;  // of the barrier or shuffle
  unsigned mask = 0, partner = 0;
  std::uint64_t value = 0;
  Place place{};
};

Order order = Order::forward;
std::mt19937 dice;
const std::function<void()>* kernel = nullptr;
std::vector<Fiber> fibers;
Fiber* current = nullptr;
Place scheduler;

/// 0 to n - 1, as they take their turns.
std::vector<unsigned> turns(unsigned n) {
  std::vector<unsigned> result(n);
  std::iota(result.begin(), result.end(), 0U);
  if (order == Order::reverse) std::ranges::reverse(result);
  if (order == Order::shuffled) std::ranges::shuffle(result, dice);
  return result;
}

// GCC cannot have both builtins in one function, nor know which registers these leave alone (noipa).
[[gnu::noipa, noreturn]] void go_to(Place& place) {
  __builtin_longjmp(place, 1);
}

/// Until the fiber pauses.
[[gnu::noipa]] void resume(Fiber& fiber) {
  current = &fiber;
  if (__builtin_setjmp(scheduler) == 0) go_to(fiber.place);
}

/// Back to the scheduler, until it resumes this fiber.
[[gnu::noipa]] void pause(State state, std::source_location where = {}) {
  current->state = state;
  current->where = where;
  if (__builtin_setjmp(current->place) == 0) go_to(scheduler);
}

void run_threads() {
  for (;;) {
    pause(State::ended);
    (*kernel)();
  }
}

/// A fiber that will run a thread whenever it is resumed and had ended.
[[gnu::noipa]] void start(Fiber& fiber, std::byte* stack) {
  current = &fiber;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  makecontext(&context, run_threads, 0);
  if (__builtin_setjmp(scheduler) == 0) setcontext(&context);
}

[[noreturn]] void fail(unsigned one, unsigned other) {
  const auto told = [](unsigned i) {
    if (i >= fibers.size()) return fmt::format("thread {} does not exist", i);
    const Fiber& fiber = fibers[i];
    if (fiber.state == State::ended) return fmt::format("thread {} has ended", i);
    return fmt::format("thread {} waits for a {} at {}:{}", i, fiber.state == State::barrier ? "barrier" : "shuffle",
                       fiber.where.file_name(), fiber.where.line());
  };
  throw std::logic_error(fmt::format("In block ({}, {}) {}, but {}.", blockIdx.x, blockIdx.y, told(one), told(other)));
}

bool same_place(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.where.line() == b.where.line() && a.where.column() == b.where.column();
}

/// Hands over what the lanes of a warp shuffle, if all that take part have come; false if none does.
bool shuffle(unsigned first, unsigned last) {
  bool any = false;
  std::uint64_t received[kWarp];
  for (unsigned i = first; i < last; ++i) {
    const Fiber& fiber = fibers[i];
    if (fiber.state != State::shuffle) continue;
    any = true;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const unsigned other = first + lane;
      const bool takes_part = (fiber.mask >> lane & 1U) != 0;
      const bool came = other < last && same_place(fibers[other], fiber) && fibers[other].mask == fiber.mask;
      if (takes_part ? !came : other == i || other == fiber.partner) fail(i, other);
    }
    received[i - first] = fibers[fiber.partner].value;
  }
  for (unsigned i = first; i < last; ++i) {
    if (fibers[i].state != State::shuffle) continue;
    fibers[i].value = received[i - first];
    fibers[i].state = State::ready;
  }
  return any;
}

/// Until all its threads wait for a barrier or have ended.
void run_warp(unsigned first, unsigned last) {
  do {
    for (const unsigned lane : turns(last - first)) {
      Fiber& fiber = fibers[first + lane];
      if (fiber.state != State::ready) continue;
      threadIdx = dim3(first + lane, 0);
      resume(fiber);
    }
  } while (shuffle(first, last));
}

/// The shared memory of a block: the variables of this program that every thread of the host has for itself. A launch
/// has a thread that uses no other such variable.
void poison_shared_memory() {
  dl_iterate_phdr(
      [](dl_phdr_info* program, std::size_t, void*) {
        for (int i = 0; i < program->dlpi_phnum; ++i)
          if (const auto& header = program->dlpi_phdr[i]; header.p_type == PT_TLS)
            std::memset(program->dlpi_tls_data, 0xff, header.p_memsz);
        return 1;  // the first is the program itself; no library
      },
      nullptr);
}

void run_block() {
  poison_shared_memory();
  const auto threads = static_cast<unsigned>(fibers.size());
  for (Fiber& fiber : fibers) fiber.state = State::ready;
  do {
    for (const unsigned warp : turns((threads + kWarp - 1) / kWarp))
      run_warp(warp * kWarp, std::min(threads, (warp + 1) * kWarp));
    for (unsigned i = 1; i < threads; ++i)
      if (!same_place(fibers[0], fibers[i])) fail(0, i);
    if (fibers[0].state == State::ended) return;
    for (Fiber& fiber : fibers) fiber.state = State::ready;
  } while (true);
}

}  // namespace

void set_order(Order chosen) {
  order = chosen;
}

void run_grid(const std::function<void()>& thread) {
  const auto stacks = std::make_unique_for_overwrite<std::byte[]>(blockDim.x * kStackBytes);
  std::exception_ptr failure;
  std::thread([&] {
    try {
      kernel = &thread;
      dice.seed(1);
      fibers = std::vector<Fiber>(blockDim.x);
      for (std::size_t i = 0; i < fibers.size(); ++i) start(fibers[i], stacks.get() + i * kStackBytes);
      for (const unsigned y : turns(gridDim.y))
        for (const unsigned x : turns(gridDim.x)) {
          blockIdx = dim3(x, y);
          run_block();
        }
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure != nullptr) std::rethrow_exception(failure);
}

void barrier(std::source_location where) {
  pause(State::barrier, where);
}

std::uint64_t shuffle_xor(unsigned mask, std::uint64_t value, int lanes, std::source_location where) {
  const auto thread = static_cast<unsigned>(current - fibers.data());
  current->mask = mask;
  current->value = value;
  current->partner = thread ^ (static_cast<unsigned>(lanes) % kWarp);
  Fiber& fiber = *current;
  pause(State::shuffle, where);
  return fiber.value;
}

}  // namespace allosaur::emulation
