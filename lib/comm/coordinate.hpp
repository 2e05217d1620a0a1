#pragma once
#include <exception>
#include <optional>
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

/// Collective. As coordinate(), but only rank 0 runs `local`; its (string) result is broadcast.
template <class F>
std::string on_root(Communicator& group, F&& local) {
  std::string text = coordinate(group, [&] { return group.rank() == 0 ? std::string(local()) : std::string(); });
  return group.broadcast(std::move(text), 0);
}

}  // namespace allosaur::comm
