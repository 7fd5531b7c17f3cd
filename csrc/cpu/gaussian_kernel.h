#pragma once

#include "../layout.h"
#include "isa.h"

namespace pyromancy {

// Operands of the Gaussian kernels in their layout.
enum GaussianOperand : int {
  kValue,
  kPred,
  kPrecision, // exp(-logvar), in compute precision
  kLogvar,    // logvar as stored: contiguous, stride 0 where positions share an element
  kGradValue,
  kGradPred,
};

enum class Precision : int { none, scalar, vector };

struct GaussianArgs {
  Layout layout;
  const void* value;
  const void* pred;
  Precision precision_kind;
  const void* precision;
  // Work is cut into items [row, chunk]: `chunk` positions of one row, `chunks` of them to a row.
  int64_t chunk, chunks;
  // one number per sample; absent means 1
  const void* weight;
  int64_t weight_stride;
};

struct GaussianKernels {
  // precision[i] = exp(-logvar[i]); returns the sum of logvar
  double (*precision)(const void* logvar, void* precision, int64_t n);
  // precision at every position of a row, from one value for each element of logvar
  void (*expand)(const Layout& layout, const void* compact, void* expanded);
  // sum (value - pred)^2 precision of each item
  void (*energy)(const GaussianArgs& args, double* sums, int64_t begin, int64_t end);
  // residual = weight (value - pred) precision and, where it is wanted, its negative
  void (*residual)(const GaussianArgs& args, void* residual, void* negative, int64_t begin,
                   int64_t end);
  // The same for rows [row_begin, row_end) and positions [begin, end), adding
  // weight (1 - (value - pred)^2 precision) into the element of `sums` that a position shares.
  void (*residual_logvar)(const GaussianArgs& args, void* residual, void* negative, double* sums,
                          int64_t row_begin, int64_t row_end, int64_t begin, int64_t end);
  // to[i] = from[i] as the storage type
  void (*convert)(const double* from, void* to, int64_t n);
};

PYROMANCY_DECLARE_KERNELS(GaussianKernels, gaussian_kernels)

} // namespace pyromancy
