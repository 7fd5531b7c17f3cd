#pragma once

#include "../dtype.h"
#include "operands.h"

namespace pyromancy::cuda {

// The second stage of every sum. With j counted over the kept dims and i over the reduced ones,
// out[offset of j] = scale * sum of in[offset of j + offset of i], added in double in an order that
// depends on shapes alone. Of `slices` pieces of the sum each has an element of out.
struct ReduceArgs {
  DType dtype; // of out; `in` is in its compute precision
  const void* in;
  void* out;
  double scale;
  int64_t kept, count; // how many j and i there are
  int kept_dims, reduced_dims;
  int64_t kept_shape[kDims], kept_in[kDims], kept_out[kDims];
  int64_t reduced_shape[kDims + 1], reduced_in[kDims + 1];
  int64_t slices; // 1, or else out is [kept, slices]
};

void launch_reduce(const ReduceArgs& args, void* stream);

} // namespace pyromancy::cuda
