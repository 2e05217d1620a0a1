#include "core/memory.hpp"

#include <malloc.h>

namespace allosaur::core {

void keep_freed_memory() {
  ::malloc_trim(0);
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

void return_freed_memory() {
  ::mallopt(M_MMAP_THRESHOLD, 1 << 17);
  ::mallopt(M_MMAP_MAX, 1 << 16);
}

}  // namespace allosaur::core
