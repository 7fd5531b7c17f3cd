#include "cholesky_kernel.h"

#include "launch.h"

namespace pyromancy::cuda {
namespace {

template <class T>
__device__ inline T element(const Matrix& m, int64_t i, int64_t j) {
  return static_cast<const T*>(m.data)[i * m.row + j * m.column];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    factor_kernel(int64_t n, const T* logdiag, int64_t stride, const Matrix offtril, T* out) {
  for (int64_t e = first_thread(); e < n * n; e += all_threads()) {
    const int64_t i = quotient(e, n), j = e - i * n;
    T x = narrow<T>(0);
    if (j < i)
      x = element<T>(offtril, i, j);
    else if (j == i)
      x = narrow<T>(std::exp(widen(logdiag[i * stride])));
    out[e] = x;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    factor_backward_kernel(int64_t n, const Matrix grad, const Matrix factor, T* grad_logdiag,
                           T* grad_offtril) {
  for (int64_t e = first_thread(); e < n * n; e += all_threads()) {
    const int64_t i = quotient(e, n), j = e - i * n;
    if (j == i)
      grad_logdiag[i] = narrow<T>(widen(element<T>(grad, i, i)) * widen(element<T>(factor, i, i)));
    grad_offtril[e] = j < i ? element<T>(grad, i, j) : narrow<T>(0);
  }
}

} // namespace

void launch_factor(DType dtype, int64_t n, const void* logdiag, int64_t logdiag_stride,
                   const Matrix& offtril, void* out, void* stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(factor_kernel<T>, blocks_for(n * n, kThreads), stream, n, static_cast<const T*>(logdiag),
           logdiag_stride, offtril, static_cast<T*>(out));
  });
}

void launch_factor_backward(DType dtype, int64_t n, const Matrix& grad, const Matrix& factor,
                            void* grad_logdiag, void* grad_offtril, void* stream) {
  with_dtype(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(factor_backward_kernel<T>, blocks_for(n * n, kThreads), stream, n, grad, factor,
           static_cast<T*>(grad_logdiag), static_cast<T*>(grad_offtril));
  });
}

} // namespace pyromancy::cuda
