#include "multivariate_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "host.h"
#include "reduce_kernel.h"

namespace pyromancy::cuda {
namespace {

bool is_wide(DType dtype) {
  return computed_in(dtype) == dtype;
}

States states_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

Factor factor_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1)};
}

// Solves into `out`, with scratch memory where the element type is not the one to compute in.
void solve(Solve kind, SolveArgs& args, const Tensor& value, const Tensor* pred,
           const Tensor& factor, const Tensor& out, const Context& context) {
  args.dtype = dtype_of("value", value);
  args.positions = value.size(1);
  args.rows = value.size(0) * args.positions;
  args.n = value.size(2);
  args.value = states_of(value);
  args.pred = pred ? states_of(*pred) : States{};
  args.factor = factor_of(factor);
  if (is_wide(args.dtype)) {
    args.work = out.data_ptr();
    return launch_solve(kind, args, context.stream);
  }
  const Tensor work = allocate_wide(value.sizes(), value);
  args.work = work.data_ptr();
  args.out = out.data_ptr();
  launch_solve(kind, args, context.stream);
}

std::tuple<Tensor, Tensor> multivariate_energy(const Tensor& value, const Tensor& pred,
                                               const Tensor& factor) {
  check_state(value, pred);
  const DType dtype = dtype_of("value", value);
  check_factor("value", value, factor);
  const Context context(value);
  const int64_t batch = value.size(0), positions = value.size(1), rows = batch * positions;
  const Tensor energy = allocate({&batch, 1}, value);
  const Tensor whitened = allocate(value.sizes(), value);
  const bool direct = positions == 1 && is_wide(dtype);
  const Tensor of_row = direct ? energy : allocate_wide({&rows, 1}, value);
  SolveArgs args{};
  args.energy = of_row.data_ptr();
  solve(Solve::forward, args, value, &pred, factor, whitened, context);
  if (direct)
    return {energy, whitened};

  ReduceArgs sum{};
  sum.dtype = dtype;
  sum.in = of_row.data_ptr();
  sum.out = energy.data_ptr();
  sum.scale = 1;
  sum.kept = batch;
  sum.count = positions;
  sum.kept_dims = sum.reduced_dims = 1;
  sum.kept_shape[0] = batch;
  sum.kept_in[0] = positions;
  sum.kept_out[0] = 1;
  sum.reduced_shape[0] = positions;
  sum.reduced_in[0] = 1;
  sum.slices = 1;
  launch_reduce(sum, context.stream);
  return {energy, whitened};
}

std::tuple<Tensor, Tensor> multivariate_energy_backward(const Tensor& grad, const Tensor& whitened,
                                                        const Tensor& factor) {
  check_factor("whitened", whitened, factor);
  dtype_of("whitened", whitened);
  check_batch("grad", grad, "whitened", whitened);
  const Context context(whitened);
  const Tensor grad_value = allocate(whitened.sizes(), whitened);
  const Tensor grad_pred = allocate(whitened.sizes(), whitened);
  SolveArgs args{};
  args.weight = grad.data_ptr();
  args.weight_stride = grad.stride(0);
  args.negative = grad_pred.data_ptr();
  solve(Solve::backward, args, whitened, nullptr, factor, grad_value, context);
  return {grad_value, grad_pred};
}

Tensor multivariate_error(const Tensor& value, const Tensor& pred, const Tensor& factor) {
  check_state(value, pred);
  dtype_of("value", value);
  check_factor("value", value, factor);
  const Context context(value);
  const Tensor error = allocate(value.sizes(), value);
  SolveArgs args{};
  solve(Solve::both, args, value, &pred, factor, error, context);
  return error;
}

Tensor multivariate_energy_backward_factor(const Tensor& grad, const Tensor& whitened,
                                           const Tensor& grad_value, const Tensor& factor) {
  check_factor("whitened", whitened, factor);
  const DType dtype = dtype_of("whitened", whitened);
  check_batch("grad", grad, "whitened", whitened);
  check_same("grad_value", grad_value, "whitened", whitened);
  const Context context(whitened);
  const Tensor out = allocate(factor.sizes(), factor);
  OuterArgs args{};
  args.dtype = dtype;
  args.batch = whitened.size(0);
  args.positions = whitened.size(1);
  args.n = whitened.size(2);
  args.grad_value = states_of(grad_value);
  args.whitened = states_of(whitened);
  args.grad = grad.data_ptr();
  args.grad_stride = grad.stride(0);
  args.factor = factor_of(factor);
  // Segments of 256 rows or more, and no more of them than it takes to fill a device.
  const int64_t tiles = ceil_div(args.n, 32) * (ceil_div(args.n, 32) + 1) / 2;
  args.segments = std::clamp<int64_t>(ceil_div(args.batch * args.positions, 256), 1,
                                      ceil_div(1024, std::max<int64_t>(1, tiles)));
  const int64_t count = args.segments * args.n * args.n, one = 1;
  const Tensor partial = allocate_wide({&count, 1}, factor);
  const Tensor total = allocate_wide({&one, 1}, factor);
  args.partial = partial.data_ptr();
  args.total = total.data_ptr();
  args.out = out.data_ptr();
  launch_outer(args, context.stream);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("multivariate_energy", TORCH_BOX(&multivariate_energy));
  m.impl("multivariate_energy_backward", TORCH_BOX(&multivariate_energy_backward));
  m.impl("multivariate_energy_backward_factor", TORCH_BOX(&multivariate_energy_backward_factor));
  m.impl("multivariate_error", TORCH_BOX(&multivariate_error));
}

} // namespace
} // namespace pyromancy::cuda
