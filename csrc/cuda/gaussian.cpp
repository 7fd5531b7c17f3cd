#include "gaussian_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "host.h"
#include "reduce_kernel.h"

namespace pyromancy::cuda {
namespace {

// The layout of a call and what the kernels are told of it. Outputs may be absent.
class Call {
public:
  Call(const Tensor& value, const Tensor& pred, const Tensor* logvar, const Tensor* weight,
       const Tensor* residual, const Tensor* negative) {
    const Sizes sizes = value.sizes();
    STD_TORCH_CHECK(sizes.size() <= kMaxDims, "value must have at most ", kMaxDims,
                    " dimensions, got ", sizes.size());
    int64_t logvar_strides[kMaxDims] = {}, out_strides[kMaxDims] = {};
    if (logvar && logvar->dim() > 0) {
      int64_t step = 1; // in memory order of a contiguous logvar, as its gradient is laid out
      for (size_t d = sizes.size(); d-- > 1; step *= logvar->size(d - 1)) {
        const bool shared = logvar->size(d - 1) == 1;
        logvar_strides[d] = shared ? 0 : logvar->stride(d - 1);
        out_strides[d] = shared ? 0 : step;
      }
    }
    const auto strides = [&](const Tensor* t) { return (t ? t : &value)->strides().data(); };
    const Layout layout = make_layout(sizes.data(), sizes.size(), true,
                                      {strides(&value), strides(&pred), strides(residual),
                                       strides(negative), logvar_strides, out_strides});
    args.extent = extent_of(layout);
    args.dtype = dtype_of("value", value);
    args.value_at = operand_of(layout, 0);
    args.pred_at = operand_of(layout, 1);
    args.residual_at = operand_of(layout, 2);
    args.negative_at = operand_of(layout, 3);
    args.logvar_at = operand_of(layout, 4);
    gradient_at = operand_of(layout, 5);
    args.value = value.data_ptr();
    args.pred = pred.data_ptr();
    args.logvar = logvar ? logvar->data_ptr() : nullptr;
    args.weight = weight ? weight->data_ptr() : nullptr;
    args.weight_stride = weight ? weight->stride(0) : 0;

    const int64_t element = value.element_size();
    const auto packed = [&](const Operand& at, const Tensor* t) {
      return !t || is_packed(args.extent, at, t->data_ptr(), element);
    };
    args.packed = args.extent.size % (16 / element) == 0 && packed(args.value_at, &value) &&
                  packed(args.pred_at, &pred) && packed(args.residual_at, residual) &&
                  packed(args.negative_at, negative) && (!logvar || packs_logvar(element));
  }

  GaussianArgs args;
  Operand gradient_at; // where the gradient for each position's element of logvar belongs

private:
  // Whether the positions of a pack have elements of logvar that lie in a pack too, or one.
  bool packs_logvar(int64_t element) const {
    const int64_t pack = 16 / element;
    const int inner = args.extent.dims - 1;
    const int64_t* stride = args.logvar_at.stride;
    if (args.extent.shape[inner] % pack != 0 || stride[inner] > 1)
      return false;
    if (stride[inner] == 0)
      return true;
    bool aligned = reinterpret_cast<uintptr_t>(args.logvar) % 16 == 0;
    for (int d = 0; d < inner; ++d)
      aligned = aligned && stride[d] % pack == 0;
    return aligned;
  }
};

// out[j] = scale * the sum of row j of `in` [items, count]
void reduce_rows(DType dtype, const Tensor& in, int64_t items, int64_t count, double scale,
                 void* out, void* stream) {
  ReduceArgs args{};
  args.dtype = dtype;
  args.in = in.data_ptr();
  args.out = out;
  args.scale = scale;
  args.kept = items;
  args.count = count;
  args.kept_dims = args.reduced_dims = 1;
  args.kept_shape[0] = items;
  args.kept_in[0] = count;
  args.kept_out[0] = 1;
  args.reduced_shape[0] = count;
  args.reduced_in[0] = 1;
  args.slices = 1;
  launch_reduce(args, stream);
}

Tensor gaussian_energy(const Tensor& value, const Tensor& pred,
                       const std::optional<Tensor>& logvar) {
  check_gaussian(value, pred, logvar);
  const Context context(value);
  const int64_t rows = value.size(0);
  const Tensor energy = allocate({&rows, 1}, value);
  const Call call(value, pred, logvar ? &*logvar : nullptr, nullptr, nullptr, nullptr);
  const int64_t chunks = ceil_div(call.args.extent.size, kChunk);
  if (chunks <= 1) {
    launch_energy(call.args, energy.data_ptr(), nullptr, context.stream);
    return energy;
  }
  const int64_t items = rows * chunks;
  const Tensor sums = allocate_wide({&items, 1}, value);
  launch_energy(call.args, nullptr, sums.data_ptr(), context.stream);
  reduce_rows(call.args.dtype, sums, rows, chunks, 0.5, energy.data_ptr(), context.stream);
  return energy;
}

Tensor gaussian_error(const Tensor& value, const Tensor& pred, const std::optional<Tensor>& logvar,
                      const std::optional<Tensor>& weight) {
  check_gaussian(value, pred, logvar);
  if (weight)
    check_batch("weight", *weight, "value", value);
  const Context context(value);
  const Tensor error = torch::stable::empty_like(value);
  const Call call(value, pred, logvar ? &*logvar : nullptr, weight ? &*weight : nullptr, &error,
                  nullptr);
  launch_residual(call.args, error.data_ptr(), nullptr, context.stream);
  return error;
}

std::tuple<Tensor, Tensor> gaussian_energy_backward(const Tensor& grad, const Tensor& value,
                                                    const Tensor& pred,
                                                    const std::optional<Tensor>& logvar) {
  check_gaussian(value, pred, logvar);
  check_batch("grad", grad, "value", value);
  const Context context(value);
  const Tensor grad_value = torch::stable::empty_like(value);
  const Tensor grad_pred = torch::stable::empty_like(pred);
  const Call call(value, pred, logvar ? &*logvar : nullptr, &grad, &grad_value, &grad_pred);
  launch_residual(call.args, grad_value.data_ptr(), grad_pred.data_ptr(), context.stream);
  return {grad_value, grad_pred};
}

// The sums of `columns` [ranges, size] over ranges, and over positions that share an element of
// logvar, into its gradient.
void reduce_columns(const Call& call, const Tensor& columns, int64_t ranges, const Tensor& out,
                    void* stream) {
  const Extent& extent = call.args.extent;
  ReduceArgs args{};
  args.dtype = call.args.dtype;
  args.in = columns.data_ptr();
  args.out = out.data_ptr();
  args.scale = 0.5;
  args.kept = 1;
  args.count = ranges;
  args.slices = 1;
  args.reduced_dims = 1;
  args.reduced_shape[0] = ranges;
  args.reduced_in[0] = extent.size;
  int64_t step = extent.size;
  for (int d = 0; d < extent.dims; ++d) {
    step /= extent.shape[d]; // between positions that are neighbours in this dim
    if (call.gradient_at.stride[d] != 0) {
      args.kept *= extent.shape[d];
      args.kept_shape[args.kept_dims] = extent.shape[d];
      args.kept_in[args.kept_dims] = step;
      args.kept_out[args.kept_dims++] = call.gradient_at.stride[d];
    } else {
      args.count *= extent.shape[d];
      args.reduced_shape[args.reduced_dims] = extent.shape[d];
      args.reduced_in[args.reduced_dims++] = step;
    }
  }
  // A few long sums are cut into slices first, for more than a few blocks to work on them.
  constexpr int64_t kSlice = 8192, kEnoughBlocks = 128;
  if (args.kept >= kEnoughBlocks || args.count <= 2 * kSlice)
    return launch_reduce(args, stream);
  ReduceArgs first = args, second = args;
  first.slices = ceil_div(args.count, kSlice);
  const int64_t pieces = args.kept * first.slices;
  const Tensor sums = allocate_wide({&pieces, 1}, out);
  first.dtype = computed_in(args.dtype);
  first.out = sums.data_ptr();
  first.scale = 1;
  launch_reduce(first, stream);

  second.in = sums.data_ptr();
  second.count = first.slices;
  second.reduced_dims = 1;
  second.reduced_shape[0] = first.slices;
  second.reduced_in[0] = 1;
  step = first.slices;
  for (int d = args.kept_dims - 1; d >= 0; step *= args.kept_shape[d--])
    second.kept_in[d] = step;
  launch_reduce(second, stream);
}

std::tuple<Tensor, Tensor, Tensor> gaussian_energy_backward_logvar(const Tensor& grad,
                                                                   const Tensor& value,
                                                                   const Tensor& pred,
                                                                   const Tensor& logvar) {
  check_gaussian(value, pred, logvar);
  check_batch("grad", grad, "value", value);
  const Context context(value);
  const Tensor grad_value = torch::stable::empty_like(value);
  const Tensor grad_pred = torch::stable::empty_like(pred);
  Tensor grad_logvar = allocate(logvar.sizes(), logvar);
  const Call call(value, pred, &logvar, &grad, &grad_value, &grad_pred);
  const int64_t rows = call.args.extent.rows, size = call.args.extent.size;
  if (rows == 0 || size == 0) {
    torch::stable::zero_(grad_logvar);
    return {grad_value, grad_pred, grad_logvar};
  }
  // Enough ranges of rows to fill a device, of so many rows each that their sums are few beside the
  // data.
  constexpr int64_t kThreadsWanted = 1 << 18, kRowsPerRange = 16;
  const int64_t threads = call.args.packed ? size / (16 / value.element_size()) : size;
  const int64_t ranges =
      std::clamp<int64_t>(ceil_div(kThreadsWanted, threads), 1, ceil_div(rows, kRowsPerRange));
  const int64_t count = ranges * size;
  const Tensor columns = allocate_wide({&count, 1}, value);
  launch_residual_logvar(call.args, grad_value.data_ptr(), grad_pred.data_ptr(), columns.data_ptr(),
                         ranges, context.stream);
  reduce_columns(call, columns, ranges, grad_logvar, context.stream);
  return {grad_value, grad_pred, grad_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("gaussian_energy", TORCH_BOX(&gaussian_energy));
  m.impl("gaussian_energy_backward", TORCH_BOX(&gaussian_energy_backward));
  m.impl("gaussian_energy_backward_logvar", TORCH_BOX(&gaussian_energy_backward_logvar));
  m.impl("gaussian_error", TORCH_BOX(&gaussian_error));
}

} // namespace
} // namespace pyromancy::cuda
