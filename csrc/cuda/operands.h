#pragma once

// Where the elements of a call's tensors lie, as the host functions tell the kernels. Plain data,
// so that it passes by value as a kernel's argument.

#include <cstdint>

namespace pyromancy::cuda {

inline constexpr int kDims = 12; // that a node has left after merging; memory in one piece has one

// A loop over [rows, *shape]. Positions count the elements of one row, the last dim the innermost.
struct Extent {
  int64_t rows, size;
  int dims;
  int64_t shape[kDims];
};

// Position p of row r is at r * row plus the offset that p has under `stride`, which is p itself
// where the operand is dense. In elements.
struct Operand {
  bool dense;
  int64_t row;
  int64_t stride[kDims];
};

} // namespace pyromancy::cuda
