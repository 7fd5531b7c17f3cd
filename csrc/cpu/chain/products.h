#pragma once

// What products take for the numbers of a tile and of a matrix. In both ways in which a tile keeps
// its samples, those of wide.h and of thin.h, every element of a product is one chain of
// multiply-adds over k, whatever lies around it.

#include "../vec.h"
#include "args.h"

namespace pyromancy::PYROMANCY_ISA {

// The numbers as they are.
template <class C>
struct Exact {
  using Number = C;
  using Operand = C;
  static constexpr int kColumns = 1; // of a matrix, in an operand

  static Vec<C> multiply_add(Vec<C> a, Vec<C> b, Vec<C> c) {
    return fma(a, b, c);
  }
};

#if defined(__AVX512BF16__)
// Pairs of them, rounded to bfloat16 (to nearest even), two columns of a matrix in an operand: the
// earlier one lies in the lower half. Sums are float32, with subnormal numbers taken for zero.
struct Paired {
  using Number = float;
  using Operand = uint32_t;
  static constexpr int kColumns = 2;

  static Floats multiply_add(Words a, Words b, Floats c) {
    return (Floats)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
  }
  static Halves round(Floats x) {
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
  }
  static Words pair(Floats first, Floats second) {
    return __builtin_convertvector(round(first), Words) |
           __builtin_convertvector(round(second), Words) << 16;
  }
};
#endif

// A matrix of a sum of products, and its columns. Where there are others beside it, all of them are
// packed, so that their rows come in the same blocks.
struct Factor {
  PackedMatrix matrix;
  int64_t columns;
};

// Operands that so many columns take.
template <class P>
int64_t operands(int64_t columns) {
  return (columns + P::kColumns - 1) / P::kColumns;
}

} // namespace pyromancy::PYROMANCY_ISA
