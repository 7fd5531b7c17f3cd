#pragma once

// Included before every source of csrc/cuda, so that the host functions take tensors of the CPU:
// they are registered for it, and there is no device to set and no stream. What may lie in the
// host's memory lies in the device's, unless PYROMANCY_EMULATED_HOST=1.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>

extern "C" inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int32_t) {}
};
} // namespace torch::stable::accelerator

inline int32_t emulated_host() {
  return std::getenv("PYROMANCY_EMULATED_HOST") ? aoti_torch_device_type_cpu() : -1;
}

#define DeviceGuard NoGuard
#define aoti_torch_device_type_cpu emulated_host
#define CUDA CPU // the dispatch key
