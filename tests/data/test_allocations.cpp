#include <cstdlib>
#include <new>

#include <ATen/ATen.h>

#include "data/augment.hpp"
#include "pictures.hpp"
#include "testing.hpp"

// Sanitizers have an operator new of their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
thread_local std::int64_t allocations = 0;
}

// Counts what C++ allocates in this program. (A codec's own malloc is not seen.)
void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace allosaur {

TEST_CASE("augmenting allocates nothing once memory has grown") {
  const data::AugmentConfig config{.global_crops_size = 32, .local_crops_size = 16};
  std::vector<std::vector<std::byte>> files;
  for (int i = 0; i < 4; ++i)
    files.push_back(io::encode_jpeg(testing::picture(static_cast<std::uint64_t>(i), 90 + i, 70 - i), 90));
  std::vector<at::Tensor> crops;
  std::vector<void*> places;
  for (int c = 0; c < 2 + config.local_crops_number; ++c) {
    const int size = c < 2 ? 32 : 16;
    crops.push_back(at::empty({3, size, size}));
    places.push_back(crops.back().data_ptr());
  }
  data::Augmenter augmenter(config);
  const auto augment_all = [&] {
    const std::int64_t before = allocations;
    for (std::size_t i = 0; i < files.size(); ++i) {
      for (int position = 0; position < 25; ++position) augmenter.augment(files[i], 0, position, places);
    }
    return allocations - before;
  };
  CHECK(augment_all() > 0);
  CHECK(augment_all() == 0);
}

}  // namespace allosaur

#endif
