#pragma once

#include "isa.h"

namespace pyromancy {

inline constexpr int64_t kOuterBand = 24;

// States are matrices of `rows` rows of n elements, row r holding position r % positions of sample
// r / positions. The kernels keep a panel of rows transposed, one row per vector lane, so that no
// row's result depends on the rows beside it.
struct MultivariateArgs {
  int64_t rows, positions, n;
  const void* factor;     // L [n, n], contiguous; only its lower triangle is read
  const void* reciprocal; // 1 / diag(L) [n]
  // The right-hand side is value - pred, or value alone; elements of a row are contiguous.
  const void* value;
  const void* pred;
  int64_t value_sample, value_position, pred_sample, pred_position;
  int vectors; // panel width in vectors; items are panels
};

struct MultivariateKernels {
  int lanes;       // of one vector
  int max_vectors; // the widest panel
  // All take a workspace of n * vectors * lanes elements.
  // whitened = L^-1 (value - pred) [rows, n] and its squared norms [rows]
  void (*whiten)(const MultivariateArgs& args, void* workspace, void* whitened, double* norms,
                 int64_t begin, int64_t end);
  // out = weight L^-T value [rows, n] and its negative, weight being one number per sample
  void (*unwhiten)(const MultivariateArgs& args, void* workspace, const void* weight,
                   int64_t weight_stride, void* out, void* negative, int64_t begin, int64_t end);
  // out = L^-T L^-1 (value - pred) [rows, n]
  void (*solve)(const MultivariateArgs& args, void* workspace, void* out, int64_t begin,
                int64_t end);
  // The lower triangle of -sum_r a[r]^T b[r] over rows [row_begin, row_end) of a, b [rows, n], in
  // out [n, pitch] with pitch a multiple of lanes; what lies above the diagonal is undefined.
  // Items are bands of kOuterBand rows of out.
  void (*outer)(const void* a, const void* b, int64_t n, int64_t row_begin, int64_t row_end,
                void* out, int64_t pitch, int64_t begin, int64_t end);
};

// float32 and float64 only
PYROMANCY_DECLARE_KERNELS(MultivariateKernels, multivariate_kernels)

} // namespace pyromancy
