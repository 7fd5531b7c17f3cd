#pragma once

#include <array>

#include "doubles.h"
#include "panels.h"

namespace pyromancy::PYROMANCY_ISA {

// A tile whose vectors hold one neuron of `w` samples. Buffers are [n, V vectors], operands of
// products [operands(n), V vectors].
template <class P, int V>
struct Wide {
  using Products = P;
  using C = typename P::Number;
  using O = typename P::Operand;
  static constexpr int w = kLanes<C>, width = V, samples = V * w;
  static constexpr int block = kRows;
  static constexpr int64_t kChunk = 8 * kRows;
  static constexpr int64_t kSlice = 40960 / (samples * sizeof(O)); // most of a 48 KiB cache
  static constexpr int64_t partial = kChunk * V;                   // sums of a tile

  static int64_t rows(int64_t n) {
    return n;
  }
  static Vec<C> constant(const void* values, int64_t i) {
    return splat(static_cast<const C*>(values)[i]);
  }

  // What a number per sample is in vector v of a row.
  static Vec<C> per_sample(const double* numbers, int v) {
    Vec<C> x;
    for (int i = 0; i < w; ++i)
      x[i] = static_cast<C>(numbers[v * w + i]);
    return x;
  }

  // The same of numbers that lie side by side, sample `first` being the tile's first.
  static Vec<C> of_samples(const void* numbers, int64_t first, int v) {
    return load(static_cast<const C*>(numbers) + first + v * w);
  }

  static int64_t packed_size(int64_t rows, int64_t depth) {
    return round_up(rows, kStep) * operands<P>(depth);
  }

  // Rows are read a few percent more slowly than panels, which take about two passes to make; above
  // all rows a multiple of 4096 bytes apart, which contend for lines of the first-level cache.
  static PackedMatrix as_it_is(Strided<C> m, int64_t rows, int64_t passes) {
    if (P::kColumns > 1)
      return {};
    const bool fits = m.depth_stride == 1 && m.row_stride > 0 && rows >= kStep;
    const bool contend = m.row_stride * sizeof(C) % 4096 == 0;
    return fits && passes <= (contend ? 8 : 32) ? PackedMatrix{m.w, m.row_stride} : PackedMatrix{};
  }
  static int64_t packed_stride(int64_t) {
    return 0;
  }

  // Panels of kRows rows, in each of which the elements of a column lie side by side.
  static void pack(Strided<C> m, int64_t rows, int64_t depth, Rows wanted, O* packed) {
    for (int64_t i = wanted.begin; i < wanted.end; i += kRows) {
      const int64_t height = smaller(kRows, round_up(rows - i, kStep));
      pack_rows(P{}, m, i, smaller(height, rows - i), height, depth,
                packed + i * operands<P>(depth), height);
    }
  }

  // The operands that rows i to i + rows of a buffer of n make; i is even.
  static void round(const C* from, int64_t n, int64_t i, int64_t rows, O* to) {
    if constexpr (P::kColumns == 2)
      for (int64_t r = i; r < i + rows; r += 2)
        for (int v = 0; v < V; ++v) {
          const C* const first = from + (r * V + v) * w;
          store_raw(to + (r / 2 * V + v) * w,
                    P::pair(load(first), r + 1 < n ? load(first + V * w) : Vec<C>{}), Whole{});
        }
  }

  // f(tile, i, count, sums): rows i to i + count, within the rows wanted, of the sum over j of
  // A_j x(tile, j), for each tile, A_j being of(j). What is read again and again stays near: of x,
  // [depth, V vectors], one slice in the first-level cache, and of A some panels of that depth in
  // the second. Sums that wait for more slices are kept in `partial`.
  template <class Of, class X, class F>
  static void product(int64_t n, int64_t factors, Of of, Rows wanted, int64_t tiles,
                      Vec<C>* partial, X x, F f) {
    for (int64_t top = wanted.begin; top < wanted.end; top += kChunk) {
      const Rows rows{top, smaller(top + kChunk, wanted.end)};
      bool add = false;
      for (int64_t j = 0; j < factors; ++j) {
        const Factor factor = of(j);
        const int64_t depth = operands<P>(factor.columns);
        const int64_t slices = depth > kSlice ? (depth + kSlice - 1) / kSlice : 1;
        const int64_t most = (depth + slices - 1) / slices;
        int64_t k = 0;
        do { // once where there is nothing to add up
          const Slice slice{factor.matrix, depth, k, smaller(most, depth - k), add};
          const bool last = j + 1 == factors && k + most >= depth;
          for (int64_t t = 0; t < tiles; ++t) {
            const O* const of_tile = x(t, j) + k * V * w;
            Vec<C>* const sums = partial + t * kChunk * V;
            if (last)
              multiply(slice, n, rows, of_tile, t == 0, add ? sums : nullptr,
                       [&](int64_t i, int64_t count, Vec<C>* c) { f(t, i, count, c); });
            else
              accumulate(slice, n, rows, of_tile, t == 0, sums);
          }
          add = true;
          k += most;
        } while (k < depth);
      }
    }
  }

  // Columns k to k + columns of a matrix with `depth` of them, and whether their products add to
  // sums.
  struct Slice {
    PackedMatrix matrix;
    int64_t depth, k, columns;
    bool add;
  };

  // f(i, count, sums) of rows; the sums of all of them lie in `sums`, if that is not null.
  template <class F>
  PYROMANCY_INLINE static void multiply(const Slice& s, int64_t n, Rows rows, const O* x,
                                        bool first_tile, Vec<C>* sums_of_all, F f) {
    const O* const a = static_cast<const O*>(s.matrix.data);
    const bool packed = s.matrix.stride == 0;
    const int64_t row = packed ? 1 : s.matrix.stride;
    for (int64_t i = rows.begin, count; i < rows.end; i += count) {
      // Rows from i on. Of a matrix as it is the last ones may have been counted before.
      const int64_t left = n - i;
      const int64_t rounded = packed || left < kStep ? round_up(left, kStep) : left - left % kStep;
      const int64_t height = smaller(kRows, rounded);
      const int64_t first = packed ? i : smaller(i, n - height);
      count = smaller(height, left);
      Vec<C> whole[kRows * V];
      Vec<C>* const sums = sums_of_all ? sums_of_all + (i - rows.begin) * V : whole;
      const O* const panel = packed ? a + i * s.depth + s.k * height : a + first * row + s.k;
      const int64_t column = packed ? height : 1;
      if (height == kRows && packed && s.matrix.far && first_tile) {
        const int64_t next = s.k + s.columns;
        multiply_from_afar(panel, s.columns, x, s.add, sums,
                           i + kRows < rows.end ? panel + kRows * s.depth
                           : next < s.depth     ? a + rows.begin * s.depth + next * kRows
                                                : a + rows.end * s.depth);
      } else if (height == kRows) {
        multiply<kRows>(panel, row, column, s.columns, x, s.add, sums);
      } else if (height == 2 * kStep) {
        multiply<2 * kStep>(panel, row, column, s.columns, x, s.add, sums);
      } else {
        multiply<kStep>(panel, row, column, s.columns, x, s.add, sums);
      }
      f(i, count, sums + (i - first) * V);
    }
  }

  [[gnu::noinline]] static void accumulate(const Slice& s, int64_t n, Rows rows, const O* x,
                                           bool first_tile, Vec<C>* sums) {
    multiply(s, n, rows, x, first_tile, sums, [](int64_t, int64_t, Vec<C>*) {});
  }

  // Meanwhile fetches the panel that is next into the second-level cache. Apart from the other so
  // that panels that are there already cost nothing more.
  [[gnu::noinline]] static void multiply_from_afar(const O* a, int64_t depth, const O* x, bool add,
                                                   Vec<C>* sums, const O* next) {
    multiply<kRows, true>(a, 1, kRows, depth, x, add, sums, next);
  }

  // (Adds to) sums: R rows of a matrix times x. Element (r, k) is at a[r * row + k * column].
  template <int R, bool kFetch = false>
  [[gnu::noinline]] static void multiply(const O* a, int64_t row, int64_t column, int64_t depth,
                                         const O* x, bool add, Vec<C>* sums,
                                         const O* next = nullptr) {
    constexpr int kNear = R / kStep; // rows that one address reaches
    const O* at[kStep];
#pragma GCC unroll 4
    for (int g = 0; g < kStep; ++g)
      at[g] = a + g * kNear * row;
    Vec<C> c[R][V] = {};
    if (add)
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
          c[r][v] = sums[r * V + v];
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      Vec<O> b[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        b[v] = load_raw<Vec<O>>(x + (k * V + v) * w, Whole{});
      if constexpr (kFetch)
        __builtin_prefetch(next + k * R, 0, 2);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vec<O> weight = splat<O>(at[r / kNear][r % kNear * row]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
          c[r][v] = P::multiply_add(weight, b[v], c[r][v]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < kStep; ++g)
        at[g] += column;
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        sums[r * V + v] = c[r][v];
  }

  // Samples [*, n], `stride` apart, into a buffer; those beyond `count` read zero.
  static void load_samples(const C* from, int64_t stride, int64_t n, int64_t count, C* to) {
    for (int v = 0; v < V; ++v) {
      const int rows = static_cast<int>(smaller(w, count > v * w ? count - v * w : 0));
      const C* row = from + v * w * stride;
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        Vec<C> square[w] = {};
        for (int r = 0; r < rows; ++r)
          square[r] = load(row + r * stride + j, extent);
        transpose<C>(square);
        for (int q = 0; q < w && j + q < n; ++q)
          store(to + ((j + q) * V + v) * w, square[q]);
      });
    }
  }

  static void store_samples(const C* from, int64_t n, int64_t count, C* to) {
    for (int v = 0; v < V; ++v) {
      const int rows = static_cast<int>(smaller(w, count > v * w ? count - v * w : 0));
      C* row = to + v * w * n;
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        Vec<C> square[w] = {};
        for (int q = 0; q < w && j + q < n; ++q)
          square[q] = load(from + ((j + q) * V + v) * w);
        transpose<C>(square);
        for (int r = 0; r < rows; ++r)
          store(row + r * n + j, square[r], extent);
      });
    }
  }

  // What is greatest of each sample of vector v, in every lane of that sample's.
  static Vec<C> greatest(const C* a, int64_t n, int v) {
    Vec<C> most = load(a + v * w);
    for (int64_t i = 1; i < n; ++i) {
      const Vec<C> x = load(a + (i * V + v) * w);
      most = x > most ? x : most;
    }
    return most;
  }

  // total[sample] += f of what a holds of it, carried in double, neuron after neuron
  template <class F>
  static void sum(const C* a, int64_t n, double* total, F f) {
    for (int64_t i = 0; i < n; ++i)
      for (int v = 0; v < V; ++v)
        add_to(total + v * w, f(load(a + (i * V + v) * w)));
  }

  // totals[k][sample] += x[k] of all elements, where f(row, vector, place) gives x. In double, and
  // in an order that thin tiles have too: neurons that are w apart first.
  template <int K, class F>
  static void sums(int64_t n, double (*totals)[samples], F f) {
    for (int v = 0; v < V; ++v)
      for (int64_t first = 0; first < smaller(w, n); ++first) {
        Doubles<C> part[K] = {};
        for (int64_t i = first; i < n; i += w) {
          const std::array<Vec<C>, K> x = f(i, v, (i * V + v) * w);
          for (int k = 0; k < K; ++k)
            part[k].add(x[k]);
        }
        for (int k = 0; k < K; ++k)
          part[k].add_to(totals[k] + v * w);
      }
  }
};

} // namespace pyromancy::PYROMANCY_ISA
