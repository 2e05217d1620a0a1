#include "collectives.hpp"

#include <ATen/ATen.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "comm/mpi_communicator.hpp"
#include "core/error.hpp"
#include "testing.hpp"

namespace allosaur::comm {
namespace {

using testing::world;

constexpr std::array kTypes{at::kByte, at::kInt, at::kLong, at::kHalf, at::kBFloat16, at::kFloat, at::kDouble};

/// What `rank` contributes: small integers, so that sums are exact in every type.
at::Tensor values(int rank, std::int64_t count, at::ScalarType type) {
  return ((at::arange(count, at::kLong) * 7 + rank * 13) % 5).to(type);
}

at::Tensor reduced(int ranks, std::int64_t count, at::ScalarType type, ReduceOp op) {
  at::Tensor result = values(0, count, type);
  for (int rank = 1; rank < ranks; ++rank) {
    const at::Tensor other = values(rank, count, type);
    result = op == ReduceOp::sum   ? result + other
             : op == ReduceOp::min ? at::minimum(result, other)
                                   : at::maximum(result, other);
  }
  return result;
}

/// A length that differs from rank to rank and is 0 on some.
std::int64_t uneven(int rank, std::int64_t scale) {
  return rank % 3 == 1 ? 0 : scale * (rank + 1);
}

std::vector<std::int64_t> uneven_counts(int ranks, std::int64_t scale) {
  std::vector<std::int64_t> counts;
  for (int rank = 0; rank < ranks; ++rank) counts.push_back(uneven(rank, scale));
  return counts;
}

std::int64_t total(const std::vector<std::int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

void compare_sizes(Communicator& group, at::Device device, at::ScalarType type, std::int64_t count) {
  CAPTURE(at::toString(type));
  CAPTURE(count);
  const int rank = group.rank(), size = group.size();
  const auto on_device = [&](const at::Tensor& tensor) { return tensor.to(device); };
  const auto empty = [&](std::int64_t length) {
    return at::full({length}, 77, at::TensorOptions(type).device(device));
  };
  const auto same = [](const at::Tensor& actual, const at::Tensor& expected) {
    return at::equal(actual.cpu(), expected);
  };

  for (const ReduceOp op : {ReduceOp::sum, ReduceOp::min, ReduceOp::max}) {
    const at::Tensor data = on_device(values(rank, count, type));
    group.all_reduce(data, op);
    CHECK(same(data, reduced(size, count, type, op)));

    const at::Tensor send = on_device(values(rank, count * size, type)), receive = empty(count);
    group.reduce_scatter(send, receive, op);
    CHECK(same(receive, reduced(size, count * size, type, op).narrow(0, count * rank, count)));
  }

  std::vector<at::Tensor> everything;
  for (int other = 0; other < size; ++other) everything.push_back(values(other, count, type));
  const at::Tensor gathered = empty(count * size);
  group.all_gather(on_device(values(rank, count, type)), gathered);
  CHECK(same(gathered, at::cat(everything)));
  const at::Tensor in_place = empty(count * size), own_part = in_place.narrow(0, count * rank, count);
  own_part.copy_(values(rank, count, type));
  group.all_gather(own_part, in_place);
  CHECK(same(in_place, at::cat(everything)));

  for (int root = 0; root < size; ++root) {
    const at::Tensor data = on_device(values(rank, count, type));
    group.broadcast(data, root);
    CHECK(same(data, values(root, count, type)));
  }

  const auto counts = uneven_counts(size, count);
  std::vector<at::Tensor> parts;
  for (int other = 0; other < size; ++other)
    parts.push_back(values(other, counts[static_cast<std::size_t>(other)], type));
  const at::Tensor joined = empty(total(counts));
  group.all_gather_counts(on_device(parts[static_cast<std::size_t>(rank)]), joined, counts);
  CHECK(same(joined, at::cat(parts)));

  // Rank a sends uneven(a + b) values of its own kind to rank b.
  std::vector<std::int64_t> send_counts, receive_counts;
  std::vector<at::Tensor> sent, expected;
  for (int other = 0; other < size; ++other) {
    send_counts.push_back(uneven(rank + other, count));
    receive_counts.push_back(uneven(other + rank, count));
    sent.push_back(values(rank, send_counts.back(), type));
    expected.push_back(values(other, receive_counts.back(), type));
  }
  const at::Tensor exchanged = empty(total(receive_counts));
  group.all_to_all(on_device(at::cat(sent)), send_counts, exchanged, receive_counts);
  CHECK(same(exchanged, at::cat(expected)));

  const int before = (rank + size - 1) % size;
  const at::Tensor shifted = empty(uneven(before, count));
  group.ring_shift(on_device(values(rank, uneven(rank, count), type)), shifted);
  CHECK(same(shifted, values(before, uneven(before, count), type)));
}

}  // namespace

std::unique_ptr<MpiCommunicator> group_that_compares(bool wish) {
  constexpr const char* kName = "ALLOSAUR_CHECK_COLLECTIVES";
  const char* current = std::getenv(kName);
  const std::optional<std::string> former = current != nullptr ? std::optional<std::string>(current) : std::nullopt;
  ::setenv(kName, wish ? "1" : "0", 1);
  auto group = MpiCommunicator::world();
  former ? ::setenv(kName, former->c_str(), 1) : ::unsetenv(kName);
  return group;
}

void compare_with_serial(Communicator& group, at::Device device) {
  for (const auto type : kTypes)
    for (const std::int64_t count : {0, 1, 5, 1000}) compare_sizes(group, device, type, count);
  group.barrier();
}

TEST_CASE("collectives equal a serial computation") {
  compare_with_serial(world(), at::kCPU);
}

TEST_CASE("collectives in many short messages equal a serial computation") {
  const auto group = MpiCommunicator::world();
  group->set_longest_message(24);
  compare_with_serial(*group, at::kCPU);
}

TEST_CASE("16-bit sums are rounded once") {
  for (const auto type : {at::kHalf, at::kBFloat16}) {
    // One more is lost beside `large` in 16 bits, but two more are not.
    const double large = type == at::kHalf ? 2048 : 256;
    const at::Tensor data = at::full({world().size()}, world().rank() == 0 ? large : 1.0).to(type);
    const double sum = large + world().size() - 1;
    const double rounded = at::full({1}, sum, at::kDouble).to(type).to(at::kDouble).item<double>();
    const at::Tensor part = at::empty({1}, type);
    world().reduce_scatter(data, part, ReduceOp::sum);
    CHECK(part.to(at::kDouble).item<double>() == rounded);
    world().all_reduce(data, ReduceOp::sum);
    CHECK(at::equal(data.to(at::kDouble), at::full({world().size()}, rounded, at::kDouble)));
  }
}

TEST_CASE("float32 parts are added in rank order") {
  const at::Tensor send = at::full({3 * world().size()}, 0.1F + static_cast<float>(world().rank()) / 3.0F);
  const at::Tensor receive = at::empty({3});
  world().reduce_scatter(send, receive, ReduceOp::sum);
  float expected = 0.1F;
  for (int rank = 1; rank < world().size(); ++rank) expected += 0.1F + static_cast<float>(rank) / 3.0F;
  CHECK(at::equal(receive, at::full({3}, expected)));
}

TEST_CASE("conveniences") {
  const int rank = world().rank(), size = world().size();
  CHECK(world().sum(std::int64_t{rank}) == size * (size - 1) / 2);
  CHECK(world().max(std::int64_t{rank - 10}) == size - 11);
  CHECK(world().sum(0.5 * rank) == 0.25 * size * (size - 1));
  CHECK(world().exclusive_scan(rank + 1) == rank * (rank + 1) / 2);
  const auto numbers = world().gather_all(std::int64_t{7} * rank);
  const auto texts = world().gather_all(std::string(static_cast<std::size_t>(rank), 'x'));
  CHECK(std::ssize(numbers) == size);
  for (int other = 0; other < size; ++other) {
    CHECK(numbers[static_cast<std::size_t>(other)] == 7 * other);
    CHECK(texts[static_cast<std::size_t>(other)] == std::string(static_cast<std::size_t>(other), 'x'));
  }
  CHECK(world().broadcast(rank == size - 1 ? "from the last" : "", size - 1) == "from the last");
  CHECK(world().gather(std::string(static_cast<std::size_t>(rank), 'x')) ==
        (rank == 0 ? texts : std::vector<std::string>()));
  std::vector<std::int64_t> sent, expected;
  for (int other = 0; other < size; ++other) {
    sent.push_back(10 * rank + other);
    expected.push_back(10 * other + rank);
  }
  CHECK(world().swap(sent) == expected);
  for (const std::int64_t shared : {0, 1, 7, 100}) {
    const allosaur::comm::Range mine = world().share(shared);
    CHECK(mine.first == world().exclusive_scan(mine.size()));
    CHECK(world().sum(mine.size()) == shared);
    CHECK(world().max(mine.size()) <= shared / size + 1);
  }
}

TEST_CASE("requests run while the caller works, in issue order") {
  constexpr std::int64_t kCount = 100'000;
  const int size = world().size();
  std::vector<at::Tensor> data;
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    data.push_back(at::full({kCount}, static_cast<double>(world().rank() + i), at::kDouble));
    requests.push_back(world().start_all_reduce(data.back(), ReduceOp::sum));
  }
  // The second operation reads what the first one writes: it is right only if they run in order.
  const at::Tensor chained = at::ones({1}, at::kLong);
  const at::Tensor copies = at::zeros({size}, at::kLong);
  requests.push_back(world().start_all_reduce(chained, ReduceOp::sum));
  requests.push_back(world().start_all_gather(chained, copies));
  while (!requests.empty()) {  // in any order
    requests.back().wait();
    CHECK(!requests.back().pending());
    requests.pop_back();
  }
  for (int i = 0; i < 6; ++i)
    CHECK(data[static_cast<std::size_t>(i)].sum().item<double>() == (size * i + size * (size - 1) / 2.0) * kCount);
  CHECK(at::equal(copies, at::full({size}, size, at::kLong)));
}

TEST_CASE("communication goes on in the background") {
  ALLOSAUR_NEEDS_RANKS(2);
  const at::Tensor data = at::ones({1000});
  world().barrier();
  Request request = world().start_all_reduce(data, ReduceOp::sum);
  const auto complete = [&] { return data[0].item<float>() == static_cast<float>(world().size()); };
  for (int i = 0; i < 500 && !complete(); ++i)  // stands for computing: no call into the communicator
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(complete());
  request.wait();
}

TEST_CASE("a request that is dropped or replaced is finished first") {
  const at::Tensor first = at::ones({1}), second = at::ones({1});
  {
    Request request = world().start_all_reduce(first, ReduceOp::sum);
    request = world().start_all_reduce(second, ReduceOp::sum);
    CHECK(first.item<float>() == static_cast<float>(world().size()));
  }
  CHECK(second.item<float>() == static_cast<float>(world().size()));
}

TEST_CASE("a request in flight survives an exception, if the others take part") {
  const auto group = MpiCommunicator::world();
  const at::Tensor data = at::ones({1000});
  const auto leave = [&] {
    const Request request = group->start_all_reduce(data, ReduceOp::sum);
    throw core::InputError("on purpose");
  };
  CHECK_THROWS_AS(leave(), core::InputError);
  CHECK(data[999].item<float>() == static_cast<float>(world().size()));
}

TEST_CASE("an exception abandons a group whose other ranks do not come") {
  ALLOSAUR_NEEDS_RANKS(2);
  const auto left_alone = [] {
    const auto group = group_that_compares(false);  // comparing would wait for the others
    const at::Tensor data = at::ones({1000});
    Request request;
    if (group->rank() == 0) request = group->start_all_reduce(data, ReduceOp::sum);
    throw core::InputError("on purpose");
  };
  CHECK_THROWS_AS(left_alone(), core::InputError);
}

TEST_CASE("split") {
  const int rank = world().rank(), size = world().size();
  const auto group = world().split(rank % 2, -rank);
  CHECK(group->size() == (size + 1 - rank % 2) / 2);
  CHECK(group->rank() == (size - 1 - rank) / 2);  // reversed by the key
  std::int64_t sum = 0;
  for (int other = rank % 2; other < size; other += 2) sum += other;
  CHECK(group->sum(std::int64_t{rank}) == sum);
  const auto alone = world().split(rank, 0);
  CHECK(alone->size() == 1);
  compare_with_serial(*alone, at::kCPU);
}

TEST_CASE("traffic is counted as the ring algorithms send it") {
  const auto group = MpiCommunicator::world();
  const std::int64_t size = group->size();
  const at::Tensor data = at::ones({size * 100}), part = at::ones({100});
  group->all_reduce(data, ReduceOp::sum);
  CHECK(group->traffic().bytes_sent == 2 * 400 * (size - 1));
  group->reduce_scatter(data, part, ReduceOp::sum);
  CHECK(group->traffic().bytes_sent == 3 * 400 * (size - 1));
  group->all_gather(part, data);
  CHECK(group->traffic().bytes_sent == 4 * 400 * (size - 1));
  CHECK(group->traffic().calls == 3);
  CHECK(group->last_collective() == "all_gather #3");
}

TEST_CASE("wrong buffers are refused before anything is sent") {
  const at::Tensor two = at::zeros({2}), three_ranks = at::zeros({3 * world().size()});
  CHECK_THROWS_AS(world().all_gather(two, three_ranks), std::logic_error);
  CHECK_THROWS_AS(world().reduce_scatter(three_ranks, two, ReduceOp::sum), std::logic_error);
  CHECK_THROWS_AS(world().broadcast(two, world().size()), std::logic_error);
  CHECK_THROWS_AS(Buffer(at::zeros({2, 2}).t()), std::logic_error);
  CHECK_THROWS_AS(Buffer(at::zeros({2}, at::kShort)), std::logic_error);
}

}  // namespace allosaur::comm
