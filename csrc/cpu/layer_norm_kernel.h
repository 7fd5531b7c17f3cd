#pragma once

#include "isa.h"

namespace pyromancy {

// Layer normalization of dense rows, and its gradient for what is normalized.
struct LayerNormArgs {
  int64_t width;
  double eps;
  const void* input;
  const void* weight; // [width], or null: ones
  const void* bias;   // [width], or null: zeros
  const void* grad;   // of the gradient
  void* out;
};

struct LayerNormKernels {
  // Of rows [begin, end).
  void (*normalize)(const LayerNormArgs& args, int64_t begin, int64_t end);
  void (*normalize_backward)(const LayerNormArgs& args, int64_t begin, int64_t end);
};

PYROMANCY_DECLARE_KERNELS(LayerNormKernels, layer_norm_kernels)

} // namespace pyromancy
