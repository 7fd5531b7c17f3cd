#include "attention_kernel.h"

#include <limits>

#include "../activate.h"
#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

constexpr int kQueries = kVectorBytes == 64 ? 8 : 4; // rows of a product at a time

// Element (i, k) is at a[i * row + k * step].
template <class C>
struct Matrix {
  const C* a;
  int64_t row, step;
};

// out (R rows, `row` apart) = a b, of columns [0, V vectors), the last of which has `last`
// elements.
template <class C, int R, int V, class Extent>
PYROMANCY_INLINE void multiply(Matrix<C> a, int64_t depth, const C* b, int64_t b_row, C* out,
                               int64_t row, Extent last) {
  constexpr int w = kLanes<C>;
  Vec<C> sums[R][V] = {};
  for (int64_t k = 0; k < depth; ++k, b += b_row) {
    Vec<C> x[V];
#pragma GCC unroll 2
    for (int v = 0; v + 1 < V; ++v)
      x[v] = load(b + v * w);
    x[V - 1] = load(b + (V - 1) * w, last);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec<C> factor = splat(a.a[r * a.row + k * a.step]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        sums[r][v] = fma(factor, x[v], sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v + 1 < V; ++v)
      store(out + r * row + v * w, sums[r][v]);
    store(out + r * row + (V - 1) * w, sums[r][V - 1], last);
  }
}

template <class C, int R>
[[gnu::noinline]] void multiply(Matrix<C> a, int64_t depth, const C* b, int64_t b_row,
                                int64_t columns, C* out, int64_t row) {
  constexpr int w = kLanes<C>;
  int64_t j = 0;
  for (; j + 2 * w <= columns; j += 2 * w)
    multiply<C, R, 2>(a, depth, b + j, b_row, out + j, row, Whole{});
  for (; j + w <= columns; j += w)
    multiply<C, R, 1>(a, depth, b + j, b_row, out + j, row, Whole{});
  if (j < columns)
    multiply<C, R, 1>(a, depth, b + j, b_row, out + j, row, First{static_cast<int>(columns - j)});
}

// out = a b, of `rows` rows: every element is one chain of multiply-adds.
template <class C>
void multiply(int64_t rows, Matrix<C> a, int64_t depth, const C* b, int64_t b_row, int64_t columns,
              C* out, int64_t row) {
  if (rows == kQueries)
    return multiply<C, kQueries>(a, depth, b, b_row, columns, out, row);
  for (int64_t r = 0; r < rows; ++r)
    multiply<C, 1>({a.a + r * a.row, a.row, a.step}, depth, b, b_row, columns, out + r * row, row);
}

template <class C>
struct Vectors {
  C* at;
  int64_t stride;

  Vectors(const AttentionArgs& a, const Heads& of, int64_t head)
      : at(static_cast<C*>(of.data) + head / a.heads * of.stride[0] +
           head % a.heads * of.stride[1]),
        stride(of.stride[2]) {}
  Matrix<C> rows(int64_t first) const {
    return {at + first * stride, stride, 1};
  }
};

template <class C>
int64_t padded(int64_t n) {
  return (n + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// Keys side by side, so that a query meets a vector of them at a time; behind the last are zeros.
template <class C>
void turn(const Vectors<C>& of, int64_t length, int64_t width, C* to) {
  constexpr int w = kLanes<C>;
  const int64_t columns = padded<C>(length);
  for (int64_t j = 0; j < length; j += w) {
    const int rows = static_cast<int>(smaller(w, length - j));
    for_vectors<C>(width, [&](int64_t d, auto extent) {
      Vec<C> square[w] = {};
      for (int r = 0; r < rows; ++r)
        square[r] = load(of.at + (j + r) * of.stride + d, extent);
      transpose<C>(square);
      const int64_t count = smaller(w, width - d);
      for (int64_t i = 0; i < count; ++i)
        store(to + (d + i) * columns + j, square[i]);
    });
  }
}

template <class C, int n = kLanes<C>>
C largest(VecN<C, n> v) {
  if constexpr (n == 2) {
    return v[0] > v[1] ? v[0] : v[1];
  } else {
    const VecN<C, n / 2> a = low<C, n>(v), b = high<C, n>(v);
    return largest<C, n / 2>(a > b ? a : b);
  }
}

template <class C, int... i>
Vec<C> places(std::integer_sequence<int, i...>) {
  return Vec<C>{C(i)...};
}

// Scores become weights, which add up to 1; those of the first `keys` keys, and no others up to
// `columns`.
template <class C>
void softmax(C* scores, int64_t keys, int64_t columns, C scale) {
  constexpr int w = kLanes<C>;
  constexpr C infinity = std::numeric_limits<C>::infinity();
  const Vec<C> place = places<C>(std::make_integer_sequence<int, w>{});
  Vec<C> most = splat(-infinity), total{};
  for (int64_t j = 0; j < columns; j += w) {
    const Vec<C> s = load(scores + j) * scale;
    store(scores + j, s);
    most = s > most && place < C(keys - j) ? s : most;
  }
  const C top = largest<C>(most);
  for (int64_t j = 0; j < columns; j += w) {
    const auto seen = place < C(keys - j); // exp(-infinity) would take long: its result underflows
    const Vec<C> e = exp<C>(seen ? load(scores + j) - top : Vec<C>{});
    store(scores + j, seen ? e : Vec<C>{});
    total += seen ? e : Vec<C>{};
  }
  const C share = C(1) / sum<C>(total);
  for (int64_t j = 0; j < columns; j += w) // zeros also where the share is not a number
    store(scores + j, place < C(keys - j) ? load(scores + j) * share : Vec<C>{});
}

template <class C>
int64_t bytes_needed(int64_t length, int64_t width) {
  return (2 * length + 2 * width) * padded<C>(length) * int64_t(sizeof(C));
}

// What a block of queries gives the keys that it sees, of which there are then so many.
template <class C>
int64_t weigh(const AttentionArgs& a, const Vectors<C>& query, const C* keys, int64_t first,
              int64_t rows, C* weights) {
  const int64_t all = padded<C>(a.length);
  const int64_t columns = a.causal ? smaller(padded<C>(first + rows), all) : all;
  multiply(rows, query.rows(first), a.width, keys, all, columns, weights, all);
  for (int64_t r = 0; r < rows; ++r)
    softmax(weights + r * all, a.causal ? first + r + 1 : a.length, columns,
            static_cast<C>(a.scale));
  return a.causal ? first + rows : a.length;
}

template <class C>
void attend(const AttentionArgs& a, void* memory, int64_t begin, int64_t end) {
  const int64_t columns = padded<C>(a.length);
  C* const keys = static_cast<C*>(memory);     // [width][columns]
  C* const weights = keys + a.width * columns; // [kQueries][columns]
  for (int64_t head = begin; head < end; ++head) {
    const Vectors<C> query(a, a.query, head), value(a, a.value, head), out(a, a.out, head);
    turn(Vectors<C>(a, a.key, head), a.length, a.width, keys);
    for (int64_t i = 0; i < a.length; i += kQueries) {
      const int64_t rows = smaller(kQueries, a.length - i);
      const int64_t seen = weigh(a, query, keys, i, rows, weights);
      multiply(rows, {weights, columns, 1}, seen, value.at, value.stride, a.width,
               out.at + i * out.stride, out.stride);
    }
  }
}

// d = p (g - sum of p g) scale: gradients for scores, given those for the weights p.
template <class C>
void softmax_backward(const C* weights, C* grads, int64_t columns, C scale) {
  constexpr int w = kLanes<C>;
  Vec<C> total{};
  for (int64_t j = 0; j < columns; j += w)
    total = fma(load(weights + j), load(grads + j), total);
  const C mean = sum<C>(total);
  for (int64_t j = 0; j < columns; j += w)
    store(grads + j, load(weights + j) * (load(grads + j) - mean) * scale);
}

template <class C>
void attend_backward(const AttentionArgs& a, void* memory, int64_t begin, int64_t end) {
  const int64_t n = a.length, columns = padded<C>(n);
  C* const keys = static_cast<C*>(memory);       // [width][columns]
  C* const values = keys + a.width * columns;    // [width][columns]
  C* const weights = values + a.width * columns; // [length][columns]
  C* const grads = weights + n * columns;        // [length][columns]
  for (int64_t head = begin; head < end; ++head) {
    const Vectors<C> query(a, a.query, head), key(a, a.key, head), value(a, a.value, head),
        grad(a, a.grad, head), in_query(a, a.in_query, head), in_key(a, a.in_key, head),
        in_value(a, a.in_value, head);
    turn(key, n, a.width, keys);
    turn(value, n, a.width, values);
    for (int64_t i = 0; i < n; i += kQueries) {
      const int64_t rows = smaller(kQueries, n - i);
      C* const of = weights + i * columns;
      C* const to = grads + i * columns;
      const int64_t seen = weigh(a, query, keys, i, rows, of);
      const int64_t wide = smaller(padded<C>(seen), columns);
      multiply(rows, grad.rows(i), a.width, values, columns, wide, to, columns);
      for (int64_t r = 0; r < rows; ++r)
        softmax_backward(of + r * columns, to + r * columns, wide, static_cast<C>(a.scale));
      multiply(rows, {to, columns, 1}, seen, key.at, key.stride, a.width,
               in_query.at + i * in_query.stride, in_query.stride);
    }
    for (int64_t j = 0; j < n; j += kQueries) {
      const int64_t rows = smaller(kQueries, n - j);
      const int64_t first = a.causal ? j : 0; // of the queries that see these keys
      const int64_t at = first * columns + j;
      multiply(rows, {weights + at, 1, columns}, n - first, grad.at + first * grad.stride,
               grad.stride, a.width, in_value.at + j * in_value.stride, in_value.stride);
      multiply(rows, {grads + at, 1, columns}, n - first, query.at + first * query.stride,
               query.stride, a.width, in_key.at + j * in_key.stride, in_key.stride);
    }
  }
}

} // namespace

// Half precision is left to PyTorch's own operators.
extern const AttentionKernels attention_kernels[kDTypes] = {
    {bytes_needed<float>, attend<float>, attend_backward<float>},
    {bytes_needed<double>, attend<double>, attend_backward<double>},
    {},
    {}};

} // namespace pyromancy::PYROMANCY_ISA
