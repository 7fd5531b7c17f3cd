#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "host.h"

namespace pyromancy {
namespace {

using torch::stable::parallel_for;

// The strictly lower triangle of `from`, any strides, into row i of a contiguous matrix, and zeros
// from the diagonal on. What `from` holds elsewhere is never read.
template <class T>
void copy_lower_row(T* to, const T* from, Sizes strides, int64_t i, int64_t n) {
  T* row = to + i * n;
  const T* source = from + i * strides[0];
  if (strides[1] == 1)
    std::copy(source, source + i, row);
  else
    for (int64_t j = 0; j < i; ++j)
      row[j] = source[j * strides[1]];
  std::fill(row + i, row + n, T(0));
}

Tensor cholesky_factor(const Tensor& logdiag, const Tensor& offtril) {
  const DType dtype = check_cholesky_factor(logdiag, offtril);
  const int64_t n = logdiag.size(0);
  Tensor factor = allocate(offtril.sizes(), offtril);

  with_element(dtype, [&](auto zero) {
    using T = decltype(zero);
    using C = std::conditional_t<std::is_same_v<T, double>, double, float>;
    T* out = data<T>(factor);
    const T* diag = data<T>(logdiag);
    const T* off = data<T>(offtril);
    const int64_t step = logdiag.stride(0);
    const Sizes strides = offtril.strides();
    parallel_for(0, n, kGrain / std::max<int64_t>(1, n) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        copy_lower_row(out, off, strides, i, n);
        out[i * n + i] = static_cast<T>(std::exp(static_cast<C>(diag[i * step])));
      }
    });
  });
  return factor;
}

std::tuple<Tensor, Tensor> cholesky_factor_backward(const Tensor& grad, const Tensor& factor) {
  const DType dtype = check_cholesky_factor_backward(grad, factor);
  const int64_t n = factor.size(0);
  Tensor grad_logdiag = allocate({&n, 1}, factor);
  Tensor grad_offtril = allocate(factor.sizes(), factor);

  with_element(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* diag = data<T>(grad_logdiag);
    T* off = data<T>(grad_offtril);
    const T* g = data<T>(grad);
    const T* l = data<T>(factor);
    const Sizes g_strides = grad.strides(), l_strides = factor.strides();
    parallel_for(0, n, kGrain / std::max<int64_t>(1, n) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        copy_lower_row(off, g, g_strides, i, n);
        diag[i] = static_cast<T>(g[i * (g_strides[0] + g_strides[1])] *
                                 l[i * (l_strides[0] + l_strides[1])]);
      }
    });
  });
  return {grad_logdiag, grad_offtril};
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("cholesky_factor", TORCH_BOX(&cholesky_factor));
  m.impl("cholesky_factor_backward", TORCH_BOX(&cholesky_factor_backward));
}

} // namespace
} // namespace pyromancy
