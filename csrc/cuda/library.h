#pragma once

// Operators of PyTorch that host functions call: matrix products and sums, on the current stream.

#include "host.h"

namespace pyromancy::cuda {

// Inside, calls build no autograd graph.
class NoGrad {
public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) {
    aoti_torch_grad_mode_set_enabled(false);
  }
  ~NoGrad() {
    aoti_torch_grad_mode_set_enabled(before_);
  }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

private:
  bool before_;
};

inline Tensor transposed(const Tensor& matrix) {
  return torch::stable::transpose(matrix, 0, 1);
}

// out = a b
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]); // another handle of `out`
}

// a b, element by element
inline Tensor product(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// t itself where it is not scaled
inline Tensor scaled(const Tensor& t, double scale) {
  if (scale == 1)
    return t;
  const int64_t one = 1;
  Tensor factor = allocate(Sizes(&one, 1), t);
  torch::stable::fill_(factor, scale);
  return product(t, factor);
}

// out = the sum of t along a dimension
inline void sum_along(const Tensor& out, const Tensor& t, int64_t dim) {
  Tensor to = out;
  torch::stable::sum_out(to, t, Sizes(&dim, 1));
}
inline void sum_first(const Tensor& out, const Tensor& t) {
  sum_along(out, t, 0);
}

} // namespace pyromancy::cuda
