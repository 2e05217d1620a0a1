#include "comm/mpi_communicator.hpp"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "comm/farewell.hpp"
#include "comm/mpi_support.hpp"
#include "comm/worker.hpp"

namespace allosaur::comm {
namespace {

constexpr std::int64_t kLongestMessage = std::int64_t{1} << 30;
constexpr std::int64_t kStagingBytes = std::int64_t{8} << 20;
constexpr int kTag = 0;
// When a waiting rank begins to look for others that have ended. Ranks from 2 on can only learn what rank 1 learns,
// too, and leave it to that one to speak, unless it has gone as well.
constexpr std::chrono::seconds kFirstLook{1}, kFirstLookOfHighRanks{3};

/// Memory that goes to, or comes from, one rank.
struct Piece {
  int rank;
  std::byte* data;
  std::int64_t bytes;
};

std::vector<std::int64_t> offsets_of(std::span<const std::int64_t> counts) {
  std::vector<std::int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

std::vector<std::int64_t> even_offsets(std::int64_t count, int parts) {
  std::vector<std::int64_t> offsets;
  for (int part = 0; part <= parts; ++part)
    offsets.push_back(count / parts * part + std::min<std::int64_t>(part, count % parts));
  return offsets;
}

bool is_half(DType dtype) {
  return dtype == DType::f16 || dtype == DType::bf16;
}

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return MPI_UINT8_T;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    default:
      throw std::logic_error("MPI does not know 16-bit floating point numbers");
  }
}

MPI_Op mpi_op(ReduceOp op) {
  return op == ReduceOp::sum ? MPI_SUM : op == ReduceOp::min ? MPI_MIN : MPI_MAX;
}

/// Calls `body` with a value of the element type.
template <class Body>
void with_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::u8:
      return body(std::uint8_t{});
    case DType::i32:
      return body(std::int32_t{});
    case DType::i64:
      return body(std::int64_t{});
    case DType::f16:
      return body(c10::Half{});
    case DType::bf16:
      return body(c10::BFloat16{});
    case DType::f32:
      return body(float{});
    case DType::f64:
      return body(double{});
  }
}

template <class T>
using Accumulator = std::conditional_t<sizeof(T) == 2, float, T>;

template <class T>
void accumulate(Accumulator<T>* into, const T* values, std::int64_t count, ReduceOp op) {
  using A = Accumulator<T>;
  switch (op) {
    case ReduceOp::sum:
      for (std::int64_t i = 0; i < count; ++i) into[i] = static_cast<A>(into[i] + static_cast<A>(values[i]));
      return;
    case ReduceOp::min:
      for (std::int64_t i = 0; i < count; ++i) into[i] = std::min(into[i], static_cast<A>(values[i]));
      return;
    case ReduceOp::max:
      for (std::int64_t i = 0; i < count; ++i) into[i] = std::max(into[i], static_cast<A>(values[i]));
      return;
  }
}

}  // namespace

/// What the group's thread works with.
struct MpiCommunicator::Impl {
  Impl(MPI_Comm communicator, std::shared_ptr<std::atomic<int>> waiting_threads)
      : comm(communicator), waiting(std::move(waiting_threads)) {
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
    if (size > 1) worker = std::make_unique<Worker>();
  }

  ~Impl() {
    const bool unwinding = std::uncaught_exceptions() > 0;
    if (worker && unwinding) worker->abandon();
    worker.reset();
    if (!unwinding) MPI_Comm_free(&comm);
  }

  void complete(std::vector<MPI_Request>& requests) const;
  void complete(MPI_Request request) const {
    std::vector<MPI_Request> requests{request};
    complete(requests);
  }
  void exchange(std::span<const Piece> sends, std::span<const Piece> receives) const;
  void reduce_parts(Buffer send, std::span<const std::int64_t> offsets, void* receive, ReduceOp op);
  template <class T>
  void reduce_parts(const T* send, std::span<const std::int64_t> offsets, T* receive, ReduceOp op);
  void gather_parts(Buffer send, Buffer receive, std::span<const std::int64_t> offsets) const;
  /// Calls `start` (an MPI call that makes a request) on consecutive pieces of the buffer and completes each.
  template <class Start>
  void in_messages(Buffer data, const char* call, Start&& start) const;

  MPI_Comm comm;
  int rank = 0, size = 1;
  std::int64_t longest_message = kLongestMessage;
  Farewell* farewell = nullptr;
  std::int64_t collective = 0;  // number of the one under way
  std::vector<std::byte> staging;
  std::shared_ptr<std::atomic<int>> waiting;  // threads of this process that wait for other ranks
  std::unique_ptr<Worker> worker;
};

void MpiCommunicator::Impl::complete(std::vector<MPI_Request>& requests) const {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  auto next_look = begin + (rank < 2 ? kFirstLook : kFirstLookOfHighRanks);
  while (true) {
    int done = 0;
    check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
              "MPI_Testall");
    if (done != 0) return;
    if (worker->abandoned()) throw core::PeerError("This rank has given up on a collective after an error.");
    const auto now = Clock::now();
    if (now - begin < std::chrono::microseconds(500)) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    if (farewell != nullptr && now > next_look) {
      farewell->expect_everyone(collective);
      next_look = now + std::chrono::milliseconds(100);
    }
  }
}

void MpiCommunicator::Impl::exchange(std::span<const Piece> sends, std::span<const Piece> receives) const {
  std::vector<MPI_Request> requests;
  const auto start = [&](std::span<const Piece> pieces, auto&& mpi_call, const char* call) {
    for (const auto& piece : pieces)
      for (std::int64_t begin = 0; begin < piece.bytes; begin += longest_message)
        check_mpi(mpi_call(piece.data + begin, static_cast<int>(std::min(longest_message, piece.bytes - begin)),
                           MPI_BYTE, piece.rank, kTag, comm, &requests.emplace_back(MPI_REQUEST_NULL)),
                  call);
  };
  start(receives, MPI_Irecv, "MPI_Irecv");
  start(sends, MPI_Isend, "MPI_Isend");
  if (!requests.empty()) complete(requests);
}

template <class T>
void MpiCommunicator::Impl::reduce_parts(const T* send, std::span<const std::int64_t> offsets, T* receive,
                                         ReduceOp op) {
  const auto offset = [&](int part) { return offsets[static_cast<std::size_t>(part)]; };
  const auto length = [&](int part) { return offset(part + 1) - offset(part); };
  std::int64_t longest = 1;
  for (int part = 0; part < size; ++part) longest = std::max(longest, length(part));
  const auto width = static_cast<std::int64_t>(sizeof(T));
  const std::int64_t step =
      std::clamp<std::int64_t>(std::min(kStagingBytes / size, longest_message) / width, 1, longest);
  staging.resize(static_cast<std::size_t>(step * size * width));
  std::vector<Accumulator<T>> result(static_cast<std::size_t>(step));
  const auto slot = [&](int part) { return reinterpret_cast<T*>(staging.data()) + step * part; };
  for (std::int64_t begin = 0; begin < longest; begin += step) {
    const auto here = [&](int part) { return std::clamp<std::int64_t>(length(part) - begin, 0, step); };
    const std::int64_t mine = here(rank);
    std::vector<Piece> sends, receives;
    for (int distance = 1; distance < size; ++distance) {
      const int to = (rank + distance) % size, from = (rank + size - distance) % size;
      // MPI does not write to what it sends.
      auto* source = reinterpret_cast<std::byte*>(const_cast<T*>(send + offset(to) + begin));
      sends.push_back({to, source, here(to) * width});
      receives.push_back({from, reinterpret_cast<std::byte*>(slot(from)), mine * width});
    }
    exchange(sends, receives);
    const T* own = send + offset(rank) + begin;
    for (int part = 0; part < size; ++part) {
      const T* values = part == rank ? own : slot(part);
      if (part == 0) {
        std::copy_n(values, mine, result.data());
      } else {
        accumulate(result.data(), values, mine, op);
      }
    }
    std::copy_n(result.data(), mine, receive + begin);
  }
}

void MpiCommunicator::Impl::reduce_parts(Buffer send, std::span<const std::int64_t> offsets, void* receive,
                                         ReduceOp op) {
  with_type(send.dtype, [&](auto example) {
    using T = decltype(example);
    reduce_parts(static_cast<const T*>(send.data), offsets, static_cast<T*>(receive), op);
  });
}

void MpiCommunicator::Impl::gather_parts(Buffer send, Buffer receive, std::span<const std::int64_t> offsets) const {
  const auto width = static_cast<std::int64_t>(size_of(send.dtype));
  const auto part = [&](int index) {
    const auto* bounds = offsets.data() + index;
    return Piece{index, static_cast<std::byte*>(receive.data) + bounds[0] * width, (bounds[1] - bounds[0]) * width};
  };
  std::vector<Piece> sends, receives;
  for (int distance = 1; distance < size; ++distance) {
    sends.push_back({(rank + distance) % size, static_cast<std::byte*>(send.data), send.bytes()});
    receives.push_back(part((rank + size - distance) % size));
  }
  if (send.bytes() > 0 && part(rank).data != send.data)
    std::memcpy(part(rank).data, send.data, static_cast<std::size_t>(send.bytes()));
  exchange(sends, receives);
}

template <class Start>
void MpiCommunicator::Impl::in_messages(Buffer data, const char* call, Start&& start) const {
  const auto width = static_cast<std::int64_t>(size_of(data.dtype));
  const std::int64_t step = std::max<std::int64_t>(1, longest_message / width);
  for (std::int64_t begin = 0; begin < data.count; begin += step) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(start(static_cast<std::byte*>(data.data) + begin * width,
                    static_cast<int>(std::min(step, data.count - begin)), &request),
              call);
    complete(request);
  }
}

std::unique_ptr<MpiCommunicator> MpiCommunicator::world(Farewell* farewell) {
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  auto impl = std::make_unique<Impl>(comm, std::make_shared<std::atomic<int>>(0));
  impl->farewell = farewell;
  return std::unique_ptr<MpiCommunicator>(new MpiCommunicator(std::move(impl)));
}

MpiCommunicator::MpiCommunicator(std::unique_ptr<Impl> impl)
    : Communicator(impl->rank, impl->size), impl_(std::move(impl)) {}

MpiCommunicator::~MpiCommunicator() = default;

bool MpiCommunicator::waiting() const noexcept {
  return *impl_->waiting > 0;
}

void MpiCommunicator::set_longest_message(std::int64_t bytes) {
  barrier();
  impl_->longest_message = bytes;
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key) {
  enter("split", 0, DType::u8, 0);
  MPI_Comm comm = MPI_COMM_NULL;
  issue([&] { check_mpi(MPI_Comm_split(impl_->comm, color, key, &comm), "MPI_Comm_split"); }).wait();
  return std::unique_ptr<Communicator>(new MpiCommunicator(std::make_unique<Impl>(comm, impl_->waiting)));
}

Request MpiCommunicator::issue(std::function<void()> work) {
  if (!impl_->worker) {
    work();
    return {};
  }
  struct State final : Request::State {
    State(Worker& its_worker, std::shared_ptr<Worker::Job> its_job) : worker(its_worker), job(std::move(its_job)) {}
    void wait() override { worker.wait(*job); }
    void abandon() noexcept override { worker.abandon(*job); }
    Worker& worker;
    std::shared_ptr<Worker::Job> job;
  };
  auto job = impl_->worker->submit([this, number = sequence(), work = std::move(work)] {
    struct Waiting {
      explicit Waiting(std::atomic<int>& its_counter) : counter(its_counter) { ++counter; }
      ~Waiting() { --counter; }
      std::atomic<int>& counter;
    } const waiting(*impl_->waiting);
    impl_->collective = number;
    work();
  });
  return Request(std::make_unique<State>(*impl_->worker, std::move(job)));
}

Request MpiCommunicator::do_all_reduce(Buffer data, ReduceOp op) {
  return issue([impl = impl_.get(), data, op] {
    if (impl->size == 1) return;
    if (is_half(data.dtype)) {
      const auto offsets = even_offsets(data.count, impl->size);
      const auto* bounds = offsets.data() + impl->rank;
      const auto width = static_cast<std::int64_t>(size_of(data.dtype));
      const Buffer part(static_cast<std::byte*>(data.data) + bounds[0] * width, bounds[1] - bounds[0], data.dtype);
      impl->reduce_parts(data, offsets, part.data, op);
      impl->gather_parts(part, data, offsets);
    } else {
      impl->in_messages(data, "MPI_Iallreduce", [&](std::byte* piece, int count, MPI_Request* request) {
        return MPI_Iallreduce(MPI_IN_PLACE, piece, count, mpi_type(data.dtype), mpi_op(op), impl->comm, request);
      });
    }
  });
}

Request MpiCommunicator::do_reduce_scatter(Buffer send, Buffer receive, ReduceOp op) {
  return issue([impl = impl_.get(), send, receive, op] {
    impl->reduce_parts(send, even_offsets(send.count, impl->size), receive.data, op);
  });
}

Request MpiCommunicator::do_all_gather(Buffer send, Buffer receive) {
  return issue([impl = impl_.get(), send, receive] {
    if (impl->size == 1 || send.bytes() > impl->longest_message)
      return impl->gather_parts(send, receive, even_offsets(receive.count, impl->size));
    const auto bytes = static_cast<int>(send.bytes());
    const bool in_place = static_cast<std::byte*>(receive.data) + send.bytes() * impl->rank == send.data;
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Iallgather(in_place ? MPI_IN_PLACE : send.data, bytes, MPI_BYTE, receive.data, bytes, MPI_BYTE,
                             impl->comm, &request),
              "MPI_Iallgather");
    impl->complete(request);
  });
}

Request MpiCommunicator::do_broadcast(Buffer data, int root) {
  return issue([impl = impl_.get(), data, root] {
    if (impl->size == 1) return;
    const Buffer bytes(data.data, data.bytes(), DType::u8);
    impl->in_messages(bytes, "MPI_Ibcast", [&](std::byte* piece, int count, MPI_Request* request) {
      return MPI_Ibcast(piece, count, MPI_BYTE, root, impl->comm, request);
    });
  });
}

void MpiCommunicator::do_barrier() {
  issue([impl = impl_.get()] {
    if (impl->size == 1) return;
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Ibarrier(impl->comm, &request), "MPI_Ibarrier");
    impl->complete(request);
  }).wait();
}

void MpiCommunicator::do_all_gather_counts(Buffer send, Buffer receive, std::span<const std::int64_t> counts) {
  issue([&] { impl_->gather_parts(send, receive, offsets_of(counts)); }).wait();
}

void MpiCommunicator::do_all_to_all(Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                                    std::span<const std::int64_t> receive_counts) {
  const auto pieces = [this](Buffer buffer, std::span<const std::int64_t> counts) {
    const auto width = static_cast<std::int64_t>(size_of(buffer.dtype));
    const auto offsets = offsets_of(counts);
    std::vector<Piece> all;
    for (int distance = 0; distance < size(); ++distance) {  // own part first, then spread over the peers
      const auto peer = static_cast<std::size_t>((rank() + distance) % size());
      all.push_back(
          {static_cast<int>(peer), static_cast<std::byte*>(buffer.data) + offsets[peer] * width, counts[peer] * width});
    }
    return all;
  };
  const auto sends = pieces(send, send_counts), receives = pieces(receive, receive_counts);
  if (sends[0].bytes != receives[0].bytes) throw std::logic_error("all_to_all: a rank's part for itself has two sizes");
  if (sends[0].bytes > 0) std::memcpy(receives[0].data, sends[0].data, static_cast<std::size_t>(sends[0].bytes));
  issue([&] { impl_->exchange(std::span(sends).subspan(1), std::span(receives).subspan(1)); }).wait();
}

void MpiCommunicator::do_ring_shift(Buffer send, Buffer receive) {
  if (size() == 1) {
    if (send.count != receive.count) throw std::logic_error("ring_shift: a single rank receives what it sends");
    if (send.bytes() > 0) std::memmove(receive.data, send.data, static_cast<std::size_t>(send.bytes()));
    return;
  }
  issue([&] {
    const Piece to{(rank() + 1) % size(), static_cast<std::byte*>(send.data), send.bytes()};
    const Piece from{(rank() + size() - 1) % size(), static_cast<std::byte*>(receive.data), receive.bytes()};
    impl_->exchange(std::span(&to, 1), std::span(&from, 1));
  }).wait();
}

}  // namespace allosaur::comm
