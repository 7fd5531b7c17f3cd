#pragma once

#include "../dtype.h"
#include "operands.h"

namespace pyromancy::cuda {

struct GaussianArgs {
  DType dtype;
  bool packed; // every operand can be accessed 16 bytes at a time
  Extent extent;
  Operand value_at, pred_at, logvar_at, residual_at, negative_at;
  const void* value;
  const void* pred;
  const void* logvar; // stride 0 where positions share an element; may be absent
  const void* weight; // one number per sample; absent means 1
  int64_t weight_stride;
};

// Positions of one row that are summed in one piece of work. It and the threads that share a piece
// depend on the size of a row alone, and so do the bits of its sum.
inline constexpr int64_t kChunk = 8192;

// Sums of (value - pred)^2 exp(-logvar) + logvar: half of one to `energy` [rows] where a row is one
// chunk, or else, in compute precision, to `chunks` [rows, ceil(size / kChunk)].
void launch_energy(const GaussianArgs& args, void* energy, void* chunks, void* stream);

// residual = weight (value - pred) exp(-logvar) and, where it is not null, its negative.
void launch_residual(const GaussianArgs& args, void* residual, void* negative, void* stream);

// The same, and in compute precision to `columns` [ranges, size] the sums of
// weight (1 - (value - pred)^2 exp(-logvar)) over the rows r with r % ranges == range.
void launch_residual_logvar(const GaussianArgs& args, void* residual, void* negative, void* columns,
                            int64_t ranges, void* stream);

} // namespace pyromancy::cuda
