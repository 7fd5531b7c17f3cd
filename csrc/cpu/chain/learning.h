#pragma once

// What learning takes of a batch, and what it makes of parameters.

#include "../../rules/rules.h"
#include "nonlinearity.h"
#include "wide.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

constexpr int64_t kDepth = 256; // samples of a panel, which stays in the first-level cache

// (Adds) rows i to i + rows of scale a^T b to `out`: a [batch, R] and the panel of b's columns
// [batch, 2 vectors], both contiguous.
template <class P, int R, class C = typename P::Number, class O = typename P::Operand>
void outer_rows(const O* a, const O* panel, int64_t batch, int64_t rows, C scale, C* out,
                int64_t stride, int64_t columns, bool add) {
  constexpr int w = kLanes<C>;
  Vec<C> sums[R * 2];
  Wide<P, 2>::template multiply<R>(a, 1, R, operands<P>(batch), panel, false, sums);
  for (int r = 0; r < smaller(R, rows); ++r)
    for (int v = 0; v < 2 && v * w < columns; ++v) {
      C* const to = out + r * stride + v * w;
      const Vec<C> sum = sums[r * 2 + v];
      const auto finish = [&](auto extent) {
        store(to, add ? fma(splat(scale), sum, load(to, extent)) : scale * sum, extent);
      };
      if (columns - v * w >= w)
        finish(Whole{});
      else
        finish(First{static_cast<int>(columns - v * w)});
    }
}

template <class P>
void outer(const void* a, const void* b, Nonlinearity f, int64_t batch, int64_t m, int64_t n,
           double scale, int64_t begin, int64_t end, void* panel, void* out, int64_t stride) {
  using C = typename P::Number;
  using O = typename P::Operand;
  constexpr int w = kLanes<C>;
  const C s = static_cast<C>(scale);
  C* const numbers = static_cast<C*>(panel);
  // A pair takes the place of the first of its rows, or an earlier one.
  O* const packed = static_cast<O*>(panel);
  for (int64_t j = begin; j < end; j += 2 * w) {
    const int64_t columns = smaller(2 * w, end - j);
    for (int64_t k = 0; k < batch || k == 0; k += kDepth) {
      const int64_t depth = smaller(kDepth, batch - k);
      pack_rows(Exact<C>{}, {static_cast<const C*>(b) + k * n + j, 1, n}, 0, columns, 2 * w, depth,
                numbers, 2 * w);
      activate_all<C>(f, numbers, numbers, 2 * depth);
      Wide<P, 2>::round(numbers, depth, 0, depth, packed);
      for (int64_t i = 0; i < m; i += kRows) {
        const int64_t height = smaller(kRows, round_up(m - i, kStep));
        const O* const rows =
            static_cast<const O*>(a) + i * operands<P>(batch) + operands<P>(k) * height;
        C* const to = static_cast<C*>(out) + i * stride + j - begin;
        if (height == kRows)
          outer_rows<P, kRows>(rows, packed, depth, m - i, s, to, stride, columns, k > 0);
        else if (height == 2 * kStep)
          outer_rows<P, 2 * kStep>(rows, packed, depth, m - i, s, to, stride, columns, k > 0);
        else
          outer_rows<P, kStep>(rows, packed, depth, m - i, s, to, stride, columns, k > 0);
      }
    }
  }
}

template <class C>
void row_norms(const void* matrix, int64_t rows, int64_t depth, int64_t row_stride,
               int64_t depth_stride, double scale, void* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const C* const row = static_cast<const C*>(matrix) + i * row_stride;
    double square = 0;
    if (depth_stride == 1) {
      Vec<C> sums[4] = {};
      int64_t k = 0;
      for (; k + 4 * kLanes<C> <= depth; k += 4 * kLanes<C>)
        for (int q = 0; q < 4; ++q) {
          const Vec<C> x = load(row + k + q * kLanes<C>);
          sums[q] = fma(x, x, sums[q]);
        }
      for (int q = 0; q < 4; ++q)
        for (int v = 0; v < kLanes<C>; ++v)
          square += static_cast<double>(sums[q][v]);
      for (; k < depth; ++k)
        square += static_cast<double>(row[k] * row[k]);
    } else {
      for (int64_t k = 0; k < depth; ++k)
        square += static_cast<double>(row[k * depth_stride] * row[k * depth_stride]);
    }
    static_cast<C*>(out)[i] = static_cast<C>(scale * __builtin_sqrt(square));
  }
}

template <class C>
void sum_rows(const void* a, int64_t batch, int64_t n, double scale, void* out) {
  for_vectors<C>(n, [&](int64_t j, auto extent) {
    Vec<C> total{};
    for (int64_t k = 0; k < batch; ++k)
      total += load(static_cast<const C*>(a) + k * n + j, extent);
    store(static_cast<C*>(out) + j, static_cast<C>(scale) * total, extent);
  });
}

template <class C>
void learn(const LearnStep& given, int64_t rows, int64_t columns, const void* gradient,
           void* parameter, void* const* kept, int64_t stride) {
  with_rule(given.rule.kind, [&](auto rule) {
    // Copies: for all that the compiler knows, what is stored might change the originals, which it
    // would read and convert again for every vector.
    const LearnStep step = given;
    C* slot[kSlots] = {};
    for (int64_t s = rule.kFirstSlot; s < rule.kEndSlot; ++s)
      slot[s] = static_cast<C*>(kept[s]);
    for (int64_t r = 0; r < rows; ++r)
      for_vectors<C>(columns, [&](int64_t j, auto extent) {
        const int64_t i = r * stride + j;
        const auto each = [&](auto f) {
#pragma GCC unroll 4
          for (int64_t s = rule.kFirstSlot; s < rule.kEndSlot; ++s)
            if (slot[s])
              f(slot[s] + i, s);
        };
        Slots<C> slots;
        each([&](const C* from, int64_t s) {
          slots.of[s] = load(from, extent), slots.has[s] = true;
        });
        C* const to = static_cast<C*>(parameter) + i;
        Vec<C> p = load(to, extent);
        rule.template apply<C>(
            step, load(static_cast<const C*>(gradient) + r * columns + j, extent), p, slots);
        store(to, p, extent);
        each([&](C* to, int64_t s) { store(to, slots.of[s], extent); });
      });
  });
}

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
