#include "cholesky_kernel.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "host.h"

namespace pyromancy::cuda {
namespace {

Matrix matrix_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1)};
}

Tensor cholesky_factor(const Tensor& logdiag, const Tensor& offtril) {
  const DType dtype = check_cholesky_factor(logdiag, offtril);
  const int64_t n = logdiag.size(0);
  const Context context(logdiag);
  const Tensor factor = allocate(offtril.sizes(), offtril);
  launch_factor(dtype, n, logdiag.data_ptr(), logdiag.stride(0), matrix_of(offtril),
                factor.data_ptr(), context.stream);
  return factor;
}

std::tuple<Tensor, Tensor> cholesky_factor_backward(const Tensor& grad, const Tensor& factor) {
  const DType dtype = check_cholesky_factor_backward(grad, factor);
  const int64_t n = factor.size(0);
  const Context context(factor);
  const Tensor grad_logdiag = allocate({&n, 1}, factor);
  const Tensor grad_offtril = allocate(factor.sizes(), factor);
  launch_factor_backward(dtype, n, matrix_of(grad), matrix_of(factor), grad_logdiag.data_ptr(),
                         grad_offtril.data_ptr(), context.stream);
  return {grad_logdiag, grad_offtril};
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("cholesky_factor", TORCH_BOX(&cholesky_factor));
  m.impl("cholesky_factor_backward", TORCH_BOX(&cholesky_factor_backward));
}

} // namespace
} // namespace pyromancy::cuda
