#include "comm/nccl_communicator.hpp"

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <nccl.h>

#include <array>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"

namespace allosaur::comm {
namespace {

void check_cuda(cudaError_t code, const char* call) {
  if (code != cudaSuccess) throw core::PeerError(fmt::format("{} failed: {}.", call, cudaGetErrorString(code)));
}

void check_nccl(ncclResult_t code, const char* call) {
  if (code != ncclSuccess)
    throw core::PeerError(
        fmt::format("NCCL: {} failed: {} ({}).", call, ncclGetErrorString(code), ncclGetLastError(nullptr)));
}

ncclDataType_t nccl_type(DType dtype) {
  constexpr std::array kTypes{ncclUint8, ncclInt32, ncclInt64, ncclFloat16, ncclBfloat16, ncclFloat32, ncclFloat64};
  return kTypes[static_cast<std::size_t>(dtype)];
}

ncclRedOp_t nccl_op(ReduceOp op) {
  return op == ReduceOp::sum ? ncclSum : op == ReduceOp::min ? ncclMin : ncclMax;
}

std::size_t elements(const Buffer& buffer) {
  return static_cast<std::size_t>(buffer.count);
}

}  // namespace

struct NcclCommunicator::Impl {
  Impl(Communicator& bootstrap, int device_index)
      : host(bootstrap), device(static_cast<c10::DeviceIndex>(device_index)), stream(make_stream(device)) {
    const std::string text = on_root(host, [] {
      ncclUniqueId fresh;
      check_nccl(ncclGetUniqueId(&fresh), "ncclGetUniqueId");
      return std::string(fresh.internal, sizeof fresh.internal);
    });
    ncclUniqueId id;
    std::memcpy(id.internal, text.data(), sizeof id.internal);
    const c10::cuda::CUDAGuard guard(device);
    check_nccl(ncclCommInitRank(&comm, host.size(), id, host.rank()), "ncclCommInitRank");
  }

  ~Impl() {
    if (failed || std::uncaught_exceptions() > 0) {
      ncclCommAbort(comm);
    } else {
      cudaStreamSynchronize(stream);
      ncclCommDestroy(comm);
    }
  }

  static c10::cuda::CUDAStream make_stream(c10::DeviceIndex device) {
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    return c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device);
  }

  Communicator& host;
  std::unique_ptr<Communicator> own_host;  // of a group made by split()
  c10::DeviceIndex device;
  c10::cuda::CUDAStream stream;
  ncclComm_t comm = nullptr;
  bool failed = false;
};

NcclCommunicator::NcclCommunicator(Communicator& bootstrap, int device)
    : NcclCommunicator(std::make_unique<Impl>(bootstrap, device)) {}

NcclCommunicator::NcclCommunicator(std::unique_ptr<Impl> impl)
    : Communicator(impl->host.rank(), impl->host.size()), impl_(std::move(impl)) {}

NcclCommunicator::~NcclCommunicator() = default;

Communicator& NcclCommunicator::host() noexcept {
  return impl_->host;
}

std::unique_ptr<Communicator> NcclCommunicator::split(int color, int key) {
  auto host_group = impl_->host.split(color, key);
  auto impl = std::make_unique<Impl>(*host_group, impl_->device);
  impl->own_host = std::move(host_group);
  return std::unique_ptr<Communicator>(new NcclCommunicator(std::move(impl)));
}

void NcclCommunicator::throw_if_failed() const {
  ncclResult_t state = ncclSuccess;
  check_nccl(ncclCommGetAsyncError(impl_->comm, &state), "ncclCommGetAsyncError");
  check_nccl(state, "a collective");
}

template <class Call>
Request NcclCommunicator::issue(const char* name, Call&& call) {
  struct State final : Request::State {
    explicit State(c10::DeviceIndex its_device) : device(its_device) {}
    void wait() override { done.block(c10::cuda::getCurrentCUDAStream(device)); }
    void abandon() noexcept override {  // the buffers may be reused only after the collective, in stream order
      cudaStreamWaitEvent(c10::cuda::getCurrentCUDAStream(device), done.event());
    }
    c10::DeviceIndex device;
    at::cuda::CUDAEvent done;
  };
  const c10::cuda::CUDAGuard guard(impl_->device);
  at::cuda::CUDAEvent ready;
  ready.record(c10::cuda::getCurrentCUDAStream(impl_->device));
  ready.block(impl_->stream);
  if (const ncclResult_t code = call(impl_->comm, impl_->stream.stream()); code != ncclSuccess) {
    impl_->failed = true;
    check_nccl(code, name);
  }
  auto state = std::make_unique<State>(impl_->device);
  state->done.record(impl_->stream);
  return Request(std::move(state));
}

Request NcclCommunicator::do_all_reduce(Buffer data, ReduceOp op) {
  return issue("all_reduce", [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclAllReduce(data.data, data.data, elements(data), nccl_type(data.dtype), nccl_op(op), comm, stream);
  });
}

Request NcclCommunicator::do_reduce_scatter(Buffer send, Buffer receive, ReduceOp op) {
  return issue("reduce_scatter", [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclReduceScatter(send.data, receive.data, elements(receive), nccl_type(send.dtype), nccl_op(op), comm,
                             stream);
  });
}

Request NcclCommunicator::do_all_gather(Buffer send, Buffer receive) {
  return issue("all_gather", [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclAllGather(send.data, receive.data, elements(send), nccl_type(send.dtype), comm, stream);
  });
}

Request NcclCommunicator::do_broadcast(Buffer data, int root) {
  return issue("broadcast", [&](ncclComm_t comm, cudaStream_t stream) {
    return ncclBroadcast(data.data, data.data, elements(data), nccl_type(data.dtype), root, comm, stream);
  });
}

void NcclCommunicator::do_barrier() {
  check_cuda(cudaStreamSynchronize(c10::cuda::getCurrentCUDAStream(impl_->device)), "cudaStreamSynchronize");
  check_cuda(cudaStreamSynchronize(impl_->stream), "cudaStreamSynchronize");
  impl_->host.barrier();
}

void NcclCommunicator::do_all_gather_counts(Buffer send, Buffer receive, std::span<const std::int64_t> counts) {
  issue("all_gather_counts", [&](ncclComm_t comm, cudaStream_t stream) {
    ncclGroupStart();
    auto* to = static_cast<std::byte*>(receive.data);
    for (int root = 0; root < size(); ++root) {
      const auto count = static_cast<std::size_t>(counts[static_cast<std::size_t>(root)]);
      ncclBroadcast(send.data, to, count, nccl_type(send.dtype), root, comm, stream);
      to += count * size_of(send.dtype);
    }
    return ncclGroupEnd();
  }).wait();
}

void NcclCommunicator::exchange(const char* name, Buffer send, std::span<const std::int64_t> send_counts,
                                Buffer receive, std::span<const std::int64_t> receive_counts) {
  issue(name, [&](ncclComm_t comm, cudaStream_t stream) {
    ncclGroupStart();
    const auto* from = static_cast<const std::byte*>(send.data);
    auto* to = static_cast<std::byte*>(receive.data);
    for (int peer = 0; peer < size(); ++peer) {
      const auto outgoing = static_cast<std::size_t>(send_counts[static_cast<std::size_t>(peer)]);
      const auto incoming = static_cast<std::size_t>(receive_counts[static_cast<std::size_t>(peer)]);
      if (outgoing > 0) ncclSend(from, outgoing, nccl_type(send.dtype), peer, comm, stream);
      if (incoming > 0) ncclRecv(to, incoming, nccl_type(send.dtype), peer, comm, stream);
      from += outgoing * size_of(send.dtype);
      to += incoming * size_of(send.dtype);
    }
    return ncclGroupEnd();
  }).wait();
}

void NcclCommunicator::do_all_to_all(Buffer send, std::span<const std::int64_t> send_counts, Buffer receive,
                                     std::span<const std::int64_t> receive_counts) {
  exchange("all_to_all", send, send_counts, receive, receive_counts);
}

void NcclCommunicator::do_ring_shift(Buffer send, Buffer receive) {
  std::vector<std::int64_t> send_counts(static_cast<std::size_t>(size()), 0), receive_counts(send_counts);
  send_counts[static_cast<std::size_t>((rank() + 1) % size())] = send.count;
  receive_counts[static_cast<std::size_t>((rank() + size() - 1) % size())] = receive.count;
  exchange("ring_shift", send, send_counts, receive, receive_counts);
}

}  // namespace allosaur::comm
