#pragma once

#include <array>

#include "doubles.h"
#include "panels.h"

namespace pyromancy::PYROMANCY_ISA {

// A tile whose vectors hold `w` neurons of one sample. Buffers are [n / w, S vectors], operands of
// products likewise; what lies in a buffer's lanes beyond n is never used.
template <class P, int S>
struct Thin {
  using Products = P;
  using C = typename P::Number;
  using O = typename P::Operand;
  static constexpr int w = kLanes<C>, width = S, samples = S;
  static constexpr int block = S == 1 ? 8 : kVectorBytes == 64 ? 6 : 2; // of a register tile
  static constexpr int64_t partial = 0;
  static constexpr int each = w / P::kColumns; // operands of a vector's neurons

  static int64_t rows(int64_t n) {
    return (n + w - 1) / w;
  }
  static Vec<C> constant(const void* values, int64_t i) {
    return load(static_cast<const C*>(values) + i * w);
  }

  static Vec<C> per_sample(const double* numbers, int v) {
    return splat(static_cast<C>(numbers[v]));
  }

  static Vec<C> of_samples(const void* numbers, int64_t first, int v) {
    return splat(static_cast<const C*>(numbers)[first + v]);
  }

  static int64_t packed_size(int64_t rows, int64_t depth) {
    return round_up(rows, w) * operands<P>(depth);
  }

  // Columns of whole vectors lie as they would when packed. To turn rows takes longer than to read
  // columns, so that it pays for those that are read once.
  static PackedMatrix as_it_is(Strided<C> m, int64_t rows, int64_t passes) {
    if (P::kColumns > 1)
      return {};
    if (m.row_stride == 1 && rows % w == 0)
      return {m.w, m.depth_stride};
    return m.depth_stride == 1 && passes == 1 ? PackedMatrix{m.w, m.row_stride, false, true}
                                              : PackedMatrix{};
  }
  static int64_t packed_stride(int64_t rows) {
    return round_up(rows, w);
  }

  static void pack(Strided<C> m, int64_t rows, int64_t depth, Rows wanted, O* packed) {
    const int64_t stride = packed_stride(rows), begin = wanted.begin;
    const int64_t height = wanted.end < rows ? wanted.end - begin : stride - begin;
    pack_rows(P{}, m, begin, smaller(height, rows - begin), height, depth, packed + begin, stride);
  }

  static void round(const C* from, int64_t n, int64_t i, int64_t rows, O* to) {
    if constexpr (P::kColumns == 2)
      for (int64_t r = i; r < i + rows; ++r)
        for (int s = 0; s < S; ++s)
          store_raw(to + (r * S + s) * each,
                    P::round(load(from + (r * S + s) * w,
                                  First{static_cast<int>(smaller(w, n - r * w))})),
                    Whole{});
  }

  // As for wide tiles; the rows wanted are counted in vectors.
  template <class Of, class X, class F>
  static void product(int64_t n, int64_t factors, Of of, Rows wanted, int64_t tiles, Vec<C>*, X x,
                      F f) {
    Vec<C> sums[block * S];
    int64_t i = wanted.begin;
    if constexpr (P::kColumns == 1)
      if (const Factor only = of(0); only.matrix.by_rows)
        for (; i < wanted.end; ++i)
          for (int64_t t = 0; t < tiles; ++t) {
            const int64_t stride = only.matrix.stride;
            multiply_rows(static_cast<const O*>(only.matrix.data) + i * w * stride,
                          smaller(w, n - i * w), stride, only.columns, x(t, int64_t{0}), sums);
            f(t, i, int64_t{1}, sums);
          }
    const auto rows = [&](auto count) { // which all tiles read while they are near
      for (; i + count <= wanted.end; i += count)
        for (int64_t t = 0; t < tiles; ++t) {
          for (int64_t j = 0; j < factors; ++j) {
            const Factor factor = of(j);
            multiply<count>(static_cast<const O*>(factor.matrix.data) + i * w, factor.matrix.stride,
                            operands<P>(factor.columns), x(t, j), j > 0, sums);
          }
          f(t, i, int64_t{count}, sums);
        }
    };
    rows(std::integral_constant<int, block>{});
    if constexpr (block > 4)
      rows(std::integral_constant<int, 4>{});
    if constexpr (block > 2)
      rows(std::integral_constant<int, 2>{});
    rows(std::integral_constant<int, 1>{});
  }

  // (Adds to) sums.
  template <int R>
  [[gnu::noinline]] static void multiply(const O* a, int64_t stride, int64_t depth, const O* x,
                                         bool add, Vec<C>* sums) {
    Vec<C> c[R][S] = {};
    if (add)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s)
          c[r][s] = sums[r * S + s];
    for (int64_t begin = 0; begin < depth; begin += each, x += S * each)
      for (int64_t k = 0; k < smaller(each, depth - begin); ++k, a += stride) {
        Vec<O> b[S];
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s)
          b[s] = splat<O>(x[s * each + k]);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec<O> weights = load_raw<Vec<O>>(a + r * w, Whole{});
#pragma GCC unroll 4
          for (int s = 0; s < S; ++s)
            c[r][s] = P::multiply_add(weights, b[s], c[r][s]);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s)
        sums[r * S + s] = c[r][s];
  }

  // The same of up to w rows, `stride` apart: squares of them become columns on the way.
  static void multiply_rows(const C* a, int64_t rows, int64_t stride, int64_t depth, const C* x,
                            Vec<C>* sums) {
    Vec<C> c[S] = {};
    const auto add = [&](int64_t k, auto columns, auto extent) __attribute__((always_inline)) {
      Vec<C> square[w];
#pragma GCC unroll 16
      for (int q = 0; q < w; ++q)
        square[q] = q < rows ? load(a + q * stride + k, extent) : Vec<C>{};
      transpose<C>(square);
#pragma GCC unroll 16
      for (int q = 0; q < w; ++q)
        if (q < columns)
#pragma GCC unroll 4
          for (int s = 0; s < S; ++s)
            c[s] = fma(square[q], splat(x[k * S + s * w + q]), c[s]);
    };
    int64_t k = 0;
    for (; k + w <= depth; k += w)
      add(k, std::integral_constant<int, w>{}, Whole{});
    if (k < depth)
      add(k, static_cast<int>(depth - k), First{static_cast<int>(depth - k)});
    for (int s = 0; s < S; ++s)
      sums[s] = c[s];
  }

  static void load_samples(const C* from, int64_t stride, int64_t n, int64_t count, C* to) {
    for (int s = 0; s < S; ++s)
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        store(to + (j / w * S + s) * w, s < count ? load(from + s * stride + j, extent) : Vec<C>{});
      });
  }

  static void store_samples(const C* from, int64_t n, int64_t count, C* to) {
    for (int s = 0; s < smaller(S, count); ++s)
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        store(to + s * n + j, load(from + (j / w * S + s) * w), extent);
      });
  }

  static Vec<C> greatest(const C* a, int64_t n, int s) {
    C most = a[s * w];
    for (int64_t i = 0; i < n; ++i) {
      const C x = a[(i / w * S + s) * w + i % w];
      most = x > most ? x : most;
    }
    return splat(most);
  }

  template <class F>
  static void sum(const C* a, int64_t n, double* total, F f) {
    for (int s = 0; s < S; ++s)
      for (int64_t i = 0; i < n; ++i)
        total[s] += static_cast<double>(f(a[(i / w * S + s) * w + i % w]));
  }

  template <int K, class F>
  static void sums(int64_t n, double (*totals)[samples], F f) {
    for (int s = 0; s < S; ++s) {
      Doubles<C> part[K] = {};
      for (int64_t i = 0; i < rows(n); ++i) {
        const std::array<Vec<C>, K> x = f(i, s, (i * S + s) * w);
        for (int k = 0; k < K; ++k)
          part[k].add(x[k], smaller(w, n - i * w));
      }
      for (int k = 0; k < K; ++k)
        part[k].add_all_to(totals[k][s], smaller(w, n));
    }
  }
};

} // namespace pyromancy::PYROMANCY_ISA
