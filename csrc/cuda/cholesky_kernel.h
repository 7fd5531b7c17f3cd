#pragma once

#include "../dtype.h"
#include "operands.h"

namespace pyromancy::cuda {

// An n x n matrix anywhere in memory.
struct Matrix {
  const void* data;
  int64_t row, column; // strides
};

// out [n, n] = tril(offtril, -1) + diag(exp(logdiag)); what offtril holds elsewhere is never read.
void launch_factor(DType dtype, int64_t n, const void* logdiag, int64_t logdiag_stride,
                   const Matrix& offtril, void* out, void* stream);

// grad_logdiag [n] = diag(grad) diag(factor), grad_offtril [n, n] = tril(grad, -1)
void launch_factor_backward(DType dtype, int64_t n, const Matrix& grad, const Matrix& factor,
                            void* grad_logdiag, void* grad_offtril, void* stream);

} // namespace pyromancy::cuda
