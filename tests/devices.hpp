#pragma once
#include <vector>

#include <ATen/Context.h>
#include <ATen/Device.h>

namespace allosaur::testing {

/// Where what runs on every device is to be tested: the CPU, and a GPU where there is one that this build can use.
inline std::vector<at::Device> devices() {
  std::vector<at::Device> all{at::kCPU};
  if (at::hasCUDA()) all.emplace_back(at::kCUDA, 0);
  return all;
}

}  // namespace allosaur::testing
