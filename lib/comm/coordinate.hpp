#pragma once
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "comm/communicator.hpp"

namespace allosaur::comm {

namespace detail {
/// Collective. Throws on every rank when `mine` is set on any: there the exception itself, elsewhere a core::PeerError
/// (with the failing rank's exit code and message).
void agree(Communicator& group, const std::exception_ptr& mine);
}  // namespace detail

/// Collective. Runs `local` (no communication inside); if any rank throws, all throw. For set-up, files and
/// checkpoints, never inside the hot loop.
template <class F>
std::invoke_result_t<F> coordinate(Communicator& group, F&& local) {
  std::exception_ptr failure;
  if constexpr (std::is_void_v<std::invoke_result_t<F>>) {
    try {
      std::forward<F>(local)();
    } catch (...) {
      failure = std::current_exception();
    }
    detail::agree(group, failure);
  } else {
    std::optional<std::invoke_result_t<F>> result;
    try {
      result.emplace(std::forward<F>(local)());
    } catch (...) {
      failure = std::current_exception();
    }
    detail::agree(group, failure);
    return std::move(*result);
  }
}

/// Collective. As coordinate(), but only rank 0 runs `local`; its result, a number, a truth value or a text, is
/// broadcast.
template <class F>
auto on_root(Communicator& group, F&& local) {
  using Given = std::invoke_result_t<F>;
  using Result = std::conditional_t<std::is_arithmetic_v<Given>, Given, std::string>;
  Result result = coordinate(group, [&] { return group.rank() == 0 ? Result(local()) : Result(); });
  if constexpr (std::is_arithmetic_v<Result>) {
    group.host().broadcast(std::as_writable_bytes(std::span(&result, 1)), 0);
    return result;
  } else {
    return group.broadcast(std::move(result), 0);
  }
}

}  // namespace allosaur::comm
