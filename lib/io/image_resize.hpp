#pragma once
#include <cstdint>
#include <memory>

#include "io/image.hpp"

namespace allosaur::io {

/// Resamples as resize_bicubic() does, value for value, into memory of the caller. Its own memory is kept from call to
/// call, so that none is allocated once it has grown to the largest image. For one thread at a time. Throws
/// std::logic_error when the box is not inside the image.
class Resizer {
 public:
  Resizer();
  ~Resizer();
  Resizer(Resizer&&) noexcept;
  Resizer& operator=(Resizer&&) noexcept;

  /// Interleaved, as in Image: u8 [height, width, channels].
  void interleaved(const Image& image, const Box& box, int width, int height, std::uint8_t* out);
  /// Channel after channel: u8 [channels, height, width]; with `mirror`, left and right are exchanged.
  void planar(const Image& image, const Box& box, int width, int height, bool mirror, std::uint8_t* out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace allosaur::io
