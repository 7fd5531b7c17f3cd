#pragma once

// What products take for the numbers of a tile and of a matrix.

#include "vec.h"

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

// Operands that so many columns take.
template <class P>
int64_t operands(int64_t columns) {
  return (columns + P::kColumns - 1) / P::kColumns;
}

} // namespace pyromancy::PYROMANCY_ISA
