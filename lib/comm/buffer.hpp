#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <ATen/core/Tensor.h>

namespace allosaur::comm {

enum class DType : std::uint8_t { u8, i32, i64, f16, bf16, f32, f64 };

std::size_t size_of(DType dtype) noexcept;  ///< bytes of one element
const char* name_of(DType dtype) noexcept;  ///< "float32", ...
DType dtype_of(const at::Tensor& tensor);   ///< bool counts as u8; throws std::logic_error for other types
at::ScalarType scalar_type_of(DType dtype) noexcept;

namespace detail {
template <class T>
struct dtype_trait;
template <>
struct dtype_trait<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct dtype_trait<std::byte> {
  static constexpr DType value = DType::u8;
};
template <>
struct dtype_trait<char> {
  static constexpr DType value = DType::u8;
};
template <>
struct dtype_trait<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_trait<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_trait<std::uint64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_trait<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_trait<double> {
  static constexpr DType value = DType::f64;
};
}  // namespace detail

/// Contiguous memory that somebody else owns, with its element type. Must stay alive until the collective has
/// completed.
struct Buffer {
  void* data = nullptr;
  std::int64_t count = 0;  ///< elements
  DType dtype = DType::u8;

  Buffer() = default;
  Buffer(void* pointer, std::int64_t elements, DType type) : data(pointer), count(elements), dtype(type) {}
  /// A contiguous tensor (any shape); throws std::logic_error when it is not contiguous.
  Buffer(const at::Tensor& tensor);  // NOLINT(google-explicit-constructor)
  template <class T, std::size_t Extent>
  Buffer(std::span<T, Extent> values)  // NOLINT(google-explicit-constructor)
      : data(const_cast<std::remove_const_t<T>*>(values.data())),
        count(static_cast<std::int64_t>(values.size())),
        dtype(detail::dtype_trait<std::remove_const_t<T>>::value) {}
  std::int64_t bytes() const noexcept { return count * static_cast<std::int64_t>(size_of(dtype)); }
};

}  // namespace allosaur::comm
