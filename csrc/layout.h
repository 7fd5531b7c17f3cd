#pragma once

#include <cstdint>
#include <initializer_list>

namespace pyromancy {

inline constexpr int kMaxDims = 64;
inline constexpr int kMaxOperands = 6;

// Where one operand's elements lie, in elements: position p of row r is at r * row plus the offset
// that p has under `stride`, which is p itself where the operand is dense.
struct Operand {
  bool dense;
  int64_t row;
  int64_t stride[kMaxDims];
};

// A loop over [rows, *dims] of operands with any strides, the dims merged and reordered so that the
// first operand is walked through memory in order. Positions count the elements of one row in
// that order.
struct Layout {
  int64_t rows;
  int64_t size; // positions in one row
  int dims;     // at least one; the last is the innermost
  int64_t shape[kMaxDims];
  Operand operand[kMaxOperands];
};

// The layout of operands that all have the shape sizes[0 .. dim), each given by its strides over
// these dims, 0 where it is broadcast. The first dim becomes the rows where has_rows is set.
Layout make_layout(const int64_t* sizes, int64_t dim, bool has_rows,
                   std::initializer_list<const int64_t*> strides);

} // namespace pyromancy
