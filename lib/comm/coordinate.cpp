#include "comm/coordinate.hpp"

#include <algorithm>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "comm/failure.hpp"
#include "core/error.hpp"
#include "core/files.hpp"

namespace allosaur::comm::detail {
namespace {

/// What went wrong, as one sentence about the lowest failing rank.
std::string summary(const std::vector<std::int64_t>& codes, const std::vector<std::string>& messages,
                    const std::string& host, std::size_t first) {
  const bool alike =
      std::all_of(messages.begin(), messages.end(), [&](const auto& text) { return text == messages[0]; });
  if (alike) return messages[0];
  std::vector<std::size_t> others;
  for (std::size_t rank = first + 1; rank < codes.size(); ++rank)
    if (codes[rank] != 0) others.push_back(rank);
  const std::string also = others.empty() ? "" : fmt::format(" (Failed, too: rank {}.)", fmt::join(others, ", "));
  return fmt::format("rank {} on {}: {}{}", first, host, messages[first], also);
}

}  // namespace

void agree(Communicator& group, const std::exception_ptr& mine) {
  const Failure failure = mine ? describe(mine) : Failure{};
  if (group.max(static_cast<std::int64_t>(failure.code)) == 0) {
    group.host().set_agreed_failure({});  // the ranks have got over an earlier one
    return;
  }

  const auto codes = group.gather_all(static_cast<std::int64_t>(failure.code));
  const auto messages = group.gather_all(failure.message);
  const auto first = static_cast<std::size_t>(
      std::find_if(codes.begin(), codes.end(), [](auto code) { return code != 0; }) - codes.begin());
  const std::string host = group.broadcast(core::host_name(), static_cast<int>(first));
  const std::string text = summary(codes, messages, host, first);

  std::exception_ptr error = mine;
  if (!error) {
    core::PeerError peer(text);
    static_cast<core::Error&>(peer) =
        core::Error(static_cast<core::ExitCode>(codes[first]), text);  // all ranks exit alike
    error = std::make_exception_ptr(peer);
  }
  group.host().set_agreed_failure(AgreedFailure{error, text});
  std::rethrow_exception(error);
}

}  // namespace allosaur::comm::detail
