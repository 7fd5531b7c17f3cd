#pragma once

// What the host functions of the CUDA kernels share. Each of them checks, sets the device,
// allocates and launches, in this order, and never waits for the device or reads its memory, so
// that a CUDA graph can capture it.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <initializer_list>

#include "../ceil_div.h"
#include "../check.h"
#include "../layout.h"
#include "operands.h"

namespace pyromancy::cuda {

// Makes a tensor's device the current one, and finds the stream that it works on.
class Context {
public:
  explicit Context(const Tensor& t);

  void* stream;

private:
  torch::stable::accelerator::DeviceGuard guard_;
};

// torch.empty(sizes) on the device of `like`, in its dtype or in the one that it is computed in.
Tensor allocate(Sizes sizes, const Tensor& like);
Tensor allocate_wide(Sizes sizes, const Tensor& like);

// Whether a tensor lies in the host's memory, to be read and written there.
bool is_on_host(const Tensor& t);

// A layout as the kernels take it.
Extent extent_of(const Layout& layout);
Operand operand_of(const Layout& layout, int operand);

// Whether `operand` is dense and can be accessed 16 bytes at a time, tails of a single row aside.
bool is_packed(const Extent& extent, const Operand& operand, const void* data, int64_t element);

} // namespace pyromancy::cuda
