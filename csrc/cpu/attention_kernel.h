#pragma once

#include "isa.h"

namespace pyromancy {

// Where the vectors of a head lie: their elements side by side, [batch, heads, length, width].
struct Heads {
  void* data;
  int64_t stride[3];
};

// Softmax(scale Q K^T) V of every head, and what it passes back.
struct AttentionArgs {
  int64_t heads, length, width; // heads of a sample
  bool causal;                  // no query looks at keys behind it
  double scale;
  Heads query, key, value;
  Heads out;                              // of attention
  Heads grad, in_query, in_key, in_value; // of its gradients
};

struct AttentionKernels {
  // How much memory a call of the other two is lent.
  int64_t (*bytes)(int64_t length, int64_t width);
  // Of heads [begin, end), counted over all samples.
  void (*attend)(const AttentionArgs& args, void* memory, int64_t begin, int64_t end);
  void (*attend_backward)(const AttentionArgs& args, void* memory, int64_t begin, int64_t end);
};

PYROMANCY_DECLARE_KERNELS(AttentionKernels, attention_kernels)

} // namespace pyromancy
