#pragma once

// Included before every source of csrc/cuda, so that the host functions take tensors of the CPU:
// they are registered for it, and there is no device to set and no stream.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

extern "C" inline AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int32_t) {}
};
} // namespace torch::stable::accelerator

#define DeviceGuard NoGuard
#define CUDA CPU // the dispatch key
