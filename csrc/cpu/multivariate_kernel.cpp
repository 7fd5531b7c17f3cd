#include "multivariate_kernel.h"

#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// A register tile of kRows x kVectors accumulators, with room for the vectors of one step.
constexpr int kRows = 6;
constexpr int kVectors = kVectorBytes == 64 ? 4 : 2;
// Rows of the panel that are applied to the others while they lie in the first-level cache.
constexpr int64_t kDepth = 16 * kRows;

// c[i][v] -= sum_k a(i, k) b[k][v] for an R x V tile of vectors, where a(i, k) is a[i * pitch + k]
// or, transposed, a[k * pitch + i].
template <bool transposed, int R, int V, class T, class Extent = Whole>
inline __attribute__((always_inline)) void
subtract_product(Vec<T> (&c)[R][V], const T* a, int64_t a_pitch, const T* b, int64_t b_pitch,
                 int64_t depth, Extent extent = {}) {
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
      row[v] = load(b + k * b_pitch + v * kLanes<T>, extent);
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i) {
      const Vec<T> x = splat<T>(transposed ? a[k * a_pitch + i] : a[i * a_pitch + k]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        c[i][v] = fnma(x, row[v], c[i][v]);
    }
  }
}

template <class T>
const T* row_of(const void* base, int64_t row, int64_t positions, int64_t sample_stride,
                int64_t position_stride) {
  return static_cast<const T*>(base) + row / positions * sample_stride +
         row % positions * position_stride;
}

// V vectors of rows from row `first` on, transposed: element j of them all is at x + j * kPitch.
template <class T, int V>
struct Panel {
  static constexpr int w = kLanes<T>;
  static constexpr int64_t kPitch = V * w;

  const MultivariateArgs& a;
  const int64_t first;
  T* const x;
  const T* const factor = static_cast<const T*>(a.factor);

  // How many rows the v-th vector has.
  int count(int v) const {
    const int64_t left = a.rows - first - v * w;
    return static_cast<int>(smaller(w, left > 0 ? left : 0));
  }

  // value - pred, zero beyond the last row.
  void load_rows() {
    for (int v = 0; v < V; ++v) {
      const int rows = count(v);
      const T* value[w];
      const T* pred[w];
      for (int r = 0; r < rows; ++r) {
        const int64_t row = first + v * w + r;
        value[r] = row_of<T>(a.value, row, a.positions, a.value_sample, a.value_position);
        if (a.pred)
          pred[r] = row_of<T>(a.pred, row, a.positions, a.pred_sample, a.pred_position);
      }
      for_vectors<T>(a.n, [&](int64_t j, auto extent) {
        Vec<T> square[w] = {};
        for (int r = 0; r < rows; ++r) {
          square[r] = load(value[r] + j, extent);
          if (a.pred)
            square[r] -= load(pred[r] + j, extent);
        }
        transpose<T>(square);
        for (int q = 0; q < w && j + q < a.n; ++q)
          store(x + (j + q) * kPitch + v * w, square[q]);
      });
    }
  }

  // f(row, j, extent, y): y holds the elements from j on of a row.
  template <class F>
  void for_rows(F f) const {
    for (int v = 0; v < V; ++v) {
      const int rows = count(v);
      for_vectors<T>(a.n, [&](int64_t j, auto extent) {
        Vec<T> square[w] = {};
        for (int q = 0; q < w && j + q < a.n; ++q)
          square[q] = load(x + (j + q) * kPitch + v * w);
        transpose<T>(square);
        for (int r = 0; r < rows; ++r)
          f(first + v * w + r, j, extent, square[r]);
      });
    }
  }

  void store_norms(double* norms) const {
    double total[kPitch] = {};
    for (int64_t j = 0; j < a.n; ++j)
      for (int v = 0; v < V; ++v) {
        const Vec<T> y = load(x + j * kPitch + v * w);
        add_to(total + v * w, y * y);
      }
    for (int64_t r = 0; r < smaller(kPitch, a.rows - first); ++r)
      norms[first + r] = total[r];
  }

  // Takes from elements [i, i + R) what elements [k, k + depth) contribute; with `solve`, where
  // nothing else is left to take, divides by the triangle on the diagonal.
  template <int R, bool transposed, bool solve>
  void eliminate(int64_t i, int64_t k, int64_t depth) {
    const int64_t n = a.n;
    Vec<T> c[R][V];
#pragma GCC unroll 6
    for (int q = 0; q < R; ++q)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        c[q][v] = load(x + (i + q) * kPitch + v * w);
    subtract_product<transposed>(c, transposed ? factor + k * n + i : factor + i * n + k, n,
                                 x + k * kPitch, kPitch, depth);
    if constexpr (solve) {
      const T* triangle = factor + i * n + i;
      const T* reciprocal = static_cast<const T*>(a.reciprocal) + i;
#pragma GCC unroll 6
      for (int s = 0; s < R; ++s) {
        const int q = transposed ? R - 1 - s : s;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          c[q][v] *= splat<T>(reciprocal[q]);
#pragma GCC unroll 6
        for (int t = s + 1; t < R; ++t) {
          const int p = transposed ? R - 1 - t : t;
          const Vec<T> l = splat<T>(transposed ? triangle[q * n + p] : triangle[p * n + q]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v)
            c[p][v] = fnma(l, c[q][v], c[p][v]);
        }
      }
    }
#pragma GCC unroll 6
    for (int q = 0; q < R; ++q)
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        store(x + (i + q) * kPitch + v * w, c[q][v]);
  }

  // x <- L^-1 x
  void forward() {
    const int64_t n = a.n;
    for (int64_t k = 0; k < n; k += kDepth) {
      const int64_t end = smaller(n, k + kDepth);
      int64_t i = k;
      for (; i + kRows <= end; i += kRows)
        eliminate<kRows, false, true>(i, k, i - k);
      for (; i < end; ++i)
        eliminate<1, false, true>(i, k, i - k);
      for (; i + kRows <= n; i += kRows)
        eliminate<kRows, false, false>(i, k, end - k);
      for (; i < n; ++i)
        eliminate<1, false, false>(i, k, end - k);
    }
  }

  // x <- L^-T x
  void backward() {
    int64_t end = a.n;
    for (int64_t k = (end - 1) / kDepth * kDepth; k >= 0; end = k, k -= kDepth) {
      int64_t i = end;
      for (; (i - k) % kRows != 0; --i)
        eliminate<1, true, true>(i - 1, i, end - i);
      for (; i > k; i -= kRows)
        eliminate<kRows, true, true>(i - kRows, i, end - i);
      for (i = 0; i < k; i += kRows)
        eliminate<kRows, true, false>(i, k, end - k);
    }
  }
};

// f(panel) for panels [begin, end). The last one is only as wide as its rows need.
template <class T, class F>
void for_panels(const MultivariateArgs& a, void* workspace, int64_t begin, int64_t end, F f) {
  const int64_t height = a.vectors * kLanes<T>;
  T* x = static_cast<T*>(workspace);
  for (int64_t row = begin * height; row < smaller(a.rows, end * height); row += height) {
    const int64_t vectors = (smaller(height, a.rows - row) + kLanes<T> - 1) / kLanes<T>;
    if (vectors == 1)
      f(Panel<T, 1>{a, row, x});
    else if (vectors == 2)
      f(Panel<T, 2>{a, row, x});
    else if (vectors == 3)
      f(Panel<T, kVectors - 1>{a, row, x});
    else
      f(Panel<T, kVectors>{a, row, x});
  }
}

template <class T>
void whiten(const MultivariateArgs& a, void* workspace, void* whitened, double* norms,
            int64_t begin, int64_t end) {
  T* out = static_cast<T*>(whitened);
  for_panels<T>(a, workspace, begin, end, [&](auto panel) {
    panel.load_rows();
    panel.forward();
    panel.store_norms(norms);
    panel.for_rows([&](int64_t row, int64_t j, auto extent, Vec<T> y) {
      store(out + row * a.n + j, y, extent);
    });
  });
}

template <class T>
void unwhiten(const MultivariateArgs& a, void* workspace, const void* weight, int64_t weight_stride,
              void* result, void* negative, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(result);
  T* out_negative = static_cast<T*>(negative);
  for_panels<T>(a, workspace, begin, end, [&](auto panel) {
    panel.load_rows();
    panel.backward();
    panel.for_rows([&](int64_t row, int64_t j, auto extent, Vec<T> y) {
      y *= splat<T>(static_cast<const T*>(weight)[row / a.positions * weight_stride]);
      store(out + row * a.n + j, y, extent);
      store(out_negative + row * a.n + j, -y, extent);
    });
  });
}

template <class T>
void solve(const MultivariateArgs& a, void* workspace, void* result, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(result);
  for_panels<T>(a, workspace, begin, end, [&](auto panel) {
    panel.load_rows();
    panel.forward();
    panel.backward();
    panel.for_rows([&](int64_t row, int64_t j, auto extent, Vec<T> y) {
      store(out + row * a.n + j, y, extent);
    });
  });
}

// out -= a^T b over `depth` rows, for an R x V tile.
template <int R, int V, class T, class Extent>
void subtract_outer(const T* a, const T* b, int64_t n, int64_t depth, T* out, int64_t pitch,
                    Extent extent) {
  Vec<T> c[R][V] = {};
  subtract_product<true>(c, a, n, b, n, depth, extent);
  for (int q = 0; q < R; ++q)
    for (int v = 0; v < V; ++v) {
      T* p = out + q * pitch + v * kLanes<T>;
      store(p, load(p) + c[q][v]);
    }
}

// Rows [i, end) of the triangle, all columns up to the diagonal.
template <class T>
void outer_band(const T* a, const T* b, int64_t n, int64_t depth, T* out, int64_t pitch, int64_t i,
                int64_t end) {
  constexpr int w = kLanes<T>;
  const auto column = [&]<int V>(int64_t j, std::integral_constant<int, V>, auto extent) {
    int64_t row = i;
    for (; row + kRows <= end; row += kRows)
      if (row + kRows > j)
        subtract_outer<kRows, V>(a + row, b + j, n, depth, out + row * pitch + j, pitch, extent);
    for (; row < end; ++row)
      subtract_outer<1, V>(a + row, b + j, n, depth, out + row * pitch + j, pitch, extent);
  };
  int64_t j = 0;
  for (; j < end && j + kVectors * w <= n; j += kVectors * w)
    column(j, std::integral_constant<int, kVectors>{}, Whole{});
  for (; j < end && j + w <= n; j += w)
    column(j, std::integral_constant<int, 1>{}, Whole{});
  if (j < end)
    column(j, std::integral_constant<int, 1>{}, First{static_cast<int>(n - j)});
}

// Consecutive items take bands from both ends of the triangle in turn, so that equal shares of
// them are equal work.
template <class T>
void outer(const void* left, const void* right, int64_t n, int64_t row_begin, int64_t row_end,
           void* result, int64_t pitch, int64_t begin, int64_t end) {
  constexpr int64_t kChunk = 128;
  const T* a = static_cast<const T*>(left);
  const T* b = static_cast<const T*>(right);
  T* out = static_cast<T*>(result);
  const int64_t bands = (n + kOuterBand - 1) / kOuterBand;
  const auto for_bands = [&](auto f) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t band = item % 2 ? bands - 1 - item / 2 : item / 2;
      f(band * kOuterBand, smaller(n, (band + 1) * kOuterBand));
    }
  };
  for_bands([&](int64_t i, int64_t last) {
    __builtin_memset(out + i * pitch, 0, (last - i) * pitch * sizeof(T));
  });
  for (int64_t r = row_begin; r < row_end; r += kChunk)
    for_bands([&](int64_t i, int64_t last) {
      outer_band(a + r * n, b + r * n, n, smaller(kChunk, row_end - r), out, pitch, i, last);
    });
}

template <class T>
constexpr MultivariateKernels table() {
  return {kLanes<T>, kVectors, whiten<T>, unwhiten<T>, solve<T>, outer<T>};
}

} // namespace

extern const MultivariateKernels multivariate_kernels[kDTypes] = {table<float>(), table<double>()};

} // namespace pyromancy::PYROMANCY_ISA
