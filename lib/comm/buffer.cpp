#include "comm/buffer.hpp"

#include <array>
#include <stdexcept>
#include <string>

namespace allosaur::comm {
namespace {

struct Entry {
  std::size_t bytes;
  const char* name;
  at::ScalarType scalar_type;
};
constexpr std::array<Entry, 7> kEntries{{{1, "uint8", at::kByte},
                                         {4, "int32", at::kInt},
                                         {8, "int64", at::kLong},
                                         {2, "float16", at::kHalf},
                                         {2, "bfloat16", at::kBFloat16},
                                         {4, "float32", at::kFloat},
                                         {8, "float64", at::kDouble}}};

const Entry& entry(DType dtype) noexcept {
  return kEntries[static_cast<std::size_t>(dtype)];
}

}  // namespace

std::size_t size_of(DType dtype) noexcept {
  return entry(dtype).bytes;
}

const char* name_of(DType dtype) noexcept {
  return entry(dtype).name;
}

at::ScalarType scalar_type_of(DType dtype) noexcept {
  return entry(dtype).scalar_type;
}

DType dtype_of(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kBool) return DType::u8;
  for (std::size_t i = 0; i < kEntries.size(); ++i)
    if (kEntries[i].scalar_type == tensor.scalar_type()) return static_cast<DType>(i);
  throw std::logic_error(std::string("Tensors of type ") + at::toString(tensor.scalar_type()) +
                         " cannot be communicated.");
}

Buffer::Buffer(const at::Tensor& tensor) : data(tensor.data_ptr()), count(tensor.numel()), dtype(dtype_of(tensor)) {
  if (!tensor.is_contiguous()) throw std::logic_error("Only contiguous tensors can be communicated.");
}

}  // namespace allosaur::comm
