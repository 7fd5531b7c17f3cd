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
  STD_TORCH_CHECK(logdiag.dim() == 1, "logdiag must have one dimension, got shape ",
                  to_string(logdiag.sizes()));
  const int64_t n = logdiag.size(0);
  const DType dtype = dtype_of("logdiag", logdiag);
  check_like("offtril", offtril, "logdiag", logdiag);
  check_square("offtril", offtril, n);
  const Context context(logdiag);
  const Tensor factor = allocate(offtril.sizes(), offtril);
  launch_factor(dtype, n, logdiag.data_ptr(), logdiag.stride(0), matrix_of(offtril),
                factor.data_ptr(), context.stream);
  return factor;
}

std::tuple<Tensor, Tensor> cholesky_factor_backward(const Tensor& grad, const Tensor& factor) {
  STD_TORCH_CHECK(factor.dim() == 2, "factor must have shape [n, n], got ",
                  to_string(factor.sizes()));
  const int64_t n = factor.size(0);
  const DType dtype = dtype_of("factor", factor);
  check_square("factor", factor, n);
  check_same("grad", grad, "factor", factor);
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
