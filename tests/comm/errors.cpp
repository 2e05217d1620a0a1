#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "collectives.hpp"
#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "testing.hpp"

namespace allosaur::comm {
namespace {

using testing::world;

/// The core::Error that `call` throws; code done when it throws none.
template <class Call>
core::Error thrown(Call&& call) {
  try {
    call();
  } catch (const core::Error& error) {
    return error;
  }
  return {core::ExitCode::done, "nothing was thrown"};
}

}  // namespace

TEST_CASE("coordinate returns what the callable returns") {
  CHECK(coordinate(world(), [] { return 42; }) == 42);
  CHECK(*coordinate(world(), [] { return std::make_unique<int>(7); }) == 7);
  coordinate(world(), [] {});
  CHECK(on_root(world(), [] { return std::string("text"); }) == "text");
  CHECK(on_root(world(), [] { return world().rank() == 0 ? "text" : "other"; }) == "text");
  const std::int64_t large = (std::int64_t{1} << 40) + world().rank();
  CHECK(on_root(world(), [&] { return large; }) == std::int64_t{1} << 40);
  CHECK(on_root(world(), [] { return 0.25 + world().rank(); }) == 0.25);
  CHECK(on_root(world(), [] { return world().rank() == 0; }) == true);
}

TEST_CASE("coordinate: the thrower throws its own, the others a PeerError with the same code") {
  ALLOSAUR_NEEDS_RANKS(2);
  const int culprit = world().size() - 1;
  const auto fail = [&] {
    coordinate(world(), [&] {
      if (world().rank() == culprit) throw core::InputError("no such file");
      return 1;
    });
  };
  const std::string expected = "rank " + std::to_string(culprit) + " on ";
  if (world().rank() == culprit) {
    CHECK_THROWS_AS(fail(), core::InputError);
  } else {
    CHECK_THROWS_AS(fail(), core::PeerError);
  }
  const core::Error error = thrown(fail);
  CHECK(error.code() == core::ExitCode::input);
  CHECK(std::string(error.what()).find("no such file") != std::string::npos);
  CHECK(world().agreed_failure()->message.substr(0, expected.size()) == expected);
  CHECK(world().sum(std::int64_t{1}) == world().size());  // everyone is still in step
  coordinate(world(), [] {});
  CHECK(!world().agreed_failure());  // it lies behind
}

TEST_CASE("coordinate: the lowest of several failing ranks is named, the others are listed") {
  ALLOSAUR_NEEDS_RANKS(4);
  thrown([] {
    coordinate(world(), [] {
      if (world().rank() > 0) throw core::StorageError("disk " + std::to_string(world().rank()) + " is full.");
    });
  });
  const std::string message = world().agreed_failure()->message;
  CHECK(message.find("rank 1 on ") == 0);
  CHECK(message.find("disk 1 is full. (Failed, too: rank 2, 3.)") != std::string::npos);
}

TEST_CASE("coordinate: an error that all ranks share is reported as it is") {
  const core::Error error = thrown([] { coordinate(world(), [] { throw core::UsageError("unknown key optim.l"); }); });
  CHECK(error.code() == core::ExitCode::usage);
  CHECK(world().agreed_failure()->message == "unknown key optim.l");
}

TEST_CASE("coordinate: exceptions that are not ours pass through") {
  const auto fail = [] { coordinate(world(), [] { throw std::out_of_range("index"); }); };
  CHECK_THROWS_AS(fail(), std::out_of_range);
  CHECK(world().agreed_failure()->message == "index");
}

TEST_CASE("on_root: only rank 0 runs it, all know of its failure") {
  const auto fail = [] { on_root(world(), []() -> std::string { throw core::InputError("unreadable"); }); };
  CHECK(thrown(fail).code() == core::ExitCode::input);
}

TEST_CASE("different collectives are found out on every rank") {
  ALLOSAUR_NEEDS_RANKS(2);
  const auto group = group_that_compares(true);
  const bool odd = group->rank() % 2 == 1;
  std::array<float, 8> data{};
  const auto check_mismatch = [&](auto&& call, const std::string& even_rank, const std::string& odd_rank) {
    const core::Error error = thrown(call);
    CHECK(error.code() == core::ExitCode::peer);
    CHECK(std::string(error.what()).find("rank 0 " + even_rank) != std::string::npos);
    CHECK(std::string(error.what()).find("rank 1 " + odd_rank) != std::string::npos);
  };
  check_mismatch([&] { group->all_reduce(std::span(data), odd ? ReduceOp::sum : ReduceOp::max); },
                 "all_reduce(float32 x 8, max)", "all_reduce(float32 x 8, sum)");
  check_mismatch([&] { odd ? group->broadcast(std::span(data), 0) : group->barrier(); }, "barrier(uint8 x 0)",
                 "broadcast(float32 x 8, root 0)");
  check_mismatch([&] { group->broadcast(std::span(data), odd ? 0 : 1); }, "broadcast(float32 x 8, root 1)",
                 "broadcast(float32 x 8, root 0)");
  check_mismatch([&] { group->all_reduce(std::span(data).first(odd ? 3 : 4), ReduceOp::sum); },
                 "all_reduce(float32 x 4, sum)", "all_reduce(float32 x 3, sum)");
  const auto size = static_cast<std::size_t>(group->size());
  std::vector<std::int64_t> counts(size, 1);
  counts[odd ? 0 : 1] = 2;
  std::vector<float> gathered(size + 1);
  check_mismatch(
      [&] {
        const auto mine = static_cast<std::size_t>(counts[static_cast<std::size_t>(group->rank())]);
        group->all_gather_counts(std::span(data).first(mine), std::span(gathered), counts);
      },
      "all_gather_counts(float32 x ", "all_gather_counts(float32 x ");
  // All send one element to every rank; those of odd number expect two of rank 0.
  const std::vector<std::int64_t> ones(size, 1);
  std::vector<std::int64_t> expected = ones;
  expected[0] = odd ? 2 : 1;
  std::vector<float> sent(size), received(size + 1);
  check_mismatch(
      [&] { group->all_to_all(std::span(sent), ones, std::span(received).first(odd ? size + 1 : size), expected); },
      "agrees", "expects 2 elements from rank 0, which sends 1");
  check_mismatch([&] { group->ring_shift(std::span(data).first(3), std::span(data).last(odd ? 4 : 3)); }, "agrees",
                 "expects 4 elements from rank 0, which sends 3");
  CHECK(group->sum(std::int64_t{1}) == group->size());  // nothing was executed, so the group is still usable
}

}  // namespace allosaur::comm
