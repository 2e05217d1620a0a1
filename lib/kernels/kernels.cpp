#include "kernels/kernels.hpp"

#include "core/error.hpp"
#include "kernels/backends.hpp"

namespace allosaur::kernels {

template <class Kernel>
void run(const Device& device, const Kernel& kernel) {
  if (!device.cuda) return cpu::run(kernel);
#ifdef ALLOSAUR_HAVE_CUDA
  cuda::run(kernel, device.stream);
#else
  throw core::PeerError("This build has no CUDA kernels; configure it with -DALLOSAUR_CUDA=ON to compute on a GPU.");
#endif
}

#define ALLOSAUR_INSTANTIATE(Kernel) template void run(const Device&, const Kernel&);
ALLOSAUR_KERNELS(ALLOSAUR_INSTANTIATE)

}  // namespace allosaur::kernels
