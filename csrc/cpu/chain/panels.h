#pragma once

// Matrices as products read them: in panels, whose columns lie one behind the other.

#include "products.h"

namespace pyromancy::PYROMANCY_ISA {

// A register tile has at most kTile accumulators.
constexpr int kTile = kVectorBytes == 64 ? 24 : 12;
constexpr int kRows = kTile / 2; // of one that is two vectors wide
constexpr int kStep = kRows / 3; // a matrix's last panel has a multiple of these

inline int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Element (i, k) of a matrix is at w[i * row_stride + k * depth_stride].
template <class C>
struct Strided {
  const C* w;
  int64_t row_stride, depth_stride;
};

// Copies `height` rows from row i on, those from `filled` on being zero, so that the elements of a
// column lie side by side and columns `stride` apart.
template <class C>
void pack_rows(Exact<C>, Strided<C> m, int64_t i, int64_t filled, int64_t height, int64_t depth,
               C* out, int64_t stride) {
  constexpr int w = kLanes<C>;
  for (int64_t r = 0; r < height; r += w) {
    const int rows = static_cast<int>(smaller(w, height - r));
    const int from = static_cast<int>(smaller(rows, filled > r ? filled - r : 0));
    const C* top = m.w + (i + r) * m.row_stride;
    int64_t k = 0;
    if (m.row_stride == 1 && from == w)
      for (; k < depth; ++k)
        store(out + k * stride + r, load(top + k * m.depth_stride));
    else if (m.row_stride == 1)
      for (; k < depth; ++k)
        store(out + k * stride + r, load(top + k * m.depth_stride, First{from}), First{rows});
    else if (m.depth_stride == 1) {
      // w columns of the first `filled` rows; a constant of the compiler's where all are
      const auto columns = [=](int64_t k, auto filled, auto extent) __attribute__((always_inline)) {
        Vec<C> square[w];
#pragma GCC unroll 16
        for (int q = 0; q < w; ++q)
          square[q] = q < filled ? load(top + q * m.row_stride + k) : Vec<C>{};
        transpose<C>(square);
#pragma GCC unroll 16
        for (int q = 0; q < w; ++q)
          store(out + (k + q) * stride + r, square[q], extent);
      };
      // Whole vectors are faster: what they write too much the columns to come write over.
      if (from == w)
        for (; k + w <= depth; k += w)
          columns(k, std::integral_constant<int, w>{}, Whole{});
      else if (rows == w || height <= w)
        for (; k + w <= depth && (rows == w || (k + w - 1 - depth) * stride + w <= 0); k += w)
          columns(k, from, Whole{});
      for (; k + w <= depth; k += w)
        columns(k, from, First{rows});
    }
    for (; k < depth; ++k)
      for (int q = 0; q < rows; ++q)
        out[k * stride + r + q] = q < from ? top[q * m.row_stride + k * m.depth_stride] : C(0);
  }
}

#if defined(__AVX512BF16__)
// The same of pairs of columns, `stride` apart.
inline void pack_rows(Paired, Strided<float> m, int64_t i, int64_t filled, int64_t height,
                      int64_t depth, uint32_t* out, int64_t stride) {
  constexpr int w = kLanes<float>;
  for (int64_t r = 0; r < height; r += w) {
    const int rows = static_cast<int>(smaller(w, height - r));
    const int from = static_cast<int>(smaller(rows, filled > r ? filled - r : 0));
    const float* const top = m.w + (i + r) * m.row_stride;
    const auto put = [&](int64_t k, Floats first, Floats second) {
      store_raw(out + k / 2 * stride + r, Paired::pair(first, second), First{rows});
    };
    int64_t k = 0;
    if (m.row_stride == 1) {
      const auto column = [&](int64_t of) { return load(top + of * m.depth_stride, First{from}); };
      for (; k + 2 <= depth; k += 2)
        put(k, column(k), column(k + 1));
    } else if (m.depth_stride == 1) {
      for (; k + w <= depth; k += w) {
        Floats square[w] = {};
        for (int q = 0; q < from; ++q)
          square[q] = load(top + q * m.row_stride + k);
        transpose<float>(square);
        for (int q = 0; q < w; q += 2)
          put(k + q, square[q], square[q + 1]);
      }
    }
    for (; k < depth; k += 2) {
      Floats columns[2] = {};
      for (int c = 0; c < smaller(2, depth - k); ++c)
        for (int q = 0; q < from; ++q)
          columns[c][q] = top[q * m.row_stride + (k + c) * m.depth_stride];
      put(k, columns[0], columns[1]);
    }
  }
}
#endif

} // namespace pyromancy::PYROMANCY_ISA
