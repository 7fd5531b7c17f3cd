#include "gaussian_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "host.h"

namespace pyromancy {
namespace {

using torch::stable::parallel_for;

// Positions of one row that are summed, or written, in one piece of work. All that decides how a
// sum is cut depends on shapes alone, so results do not depend on the number of threads.
constexpr int64_t kChunk = 65536;
// Rows up to this size get a precision for every position rather than gathering it block by block.
constexpr int64_t kExpanded = 65536;

int64_t computed_size(DType dtype) {
  return computed_in(dtype) == DType::float64 ? sizeof(double) : sizeof(float);
}

// Strides of a contiguous logvar seen as [B, *node]: 0 for the batch and where it is broadcast.
void broadcast_strides(const Tensor* logvar, int64_t dim, int64_t* strides) {
  std::fill(strides, strides + dim, 0);
  if (!logvar)
    return;
  const Sizes shape = logvar->sizes();
  int64_t step = 1;
  for (size_t d = shape.size(); d-- > 0; step *= shape[d])
    strides[d + 1] = shape[d] == 1 ? 0 : step;
}

// What every operator here sets up: the layout, exp(-logvar) and the log-determinant.
class Call {
public:
  Call(const Tensor& value, const Tensor& pred, const std::optional<Tensor>& logvar,
       const Tensor* weight, const Tensor* grad_value, const Tensor* grad_pred)
      : kernels(PYROMANCY_SELECT_KERNELS(gaussian_kernels, dtype_of("value", value))),
        shared(logvar ? logvar->numel() : 0), logvar_(logvar),
        compact_(shared * computed_size(dtype_of("value", value))) {
    if (logvar_ && !logvar_->is_contiguous())
      logvar_ = torch::stable::contiguous(*logvar_);

    const Sizes sizes = value.sizes();
    STD_TORCH_CHECK(sizes.size() <= kMaxDims, "value must have at most ", kMaxDims,
                    " dimensions, got ", sizes.size());
    int64_t shared_strides[kMaxDims];
    broadcast_strides(logvar_ ? &*logvar_ : nullptr, sizes.size(), shared_strides);
    const auto strides = [&](const Tensor* t) { return (t ? t : &value)->strides().data(); };
    args.layout = make_layout(sizes.data(), sizes.size(), true,
                              {strides(&value), strides(&pred), shared_strides, shared_strides,
                               strides(grad_value), strides(grad_pred)});
    args.value = value.data_ptr();
    args.pred = pred.data_ptr();
    args.weight = weight ? weight->data_ptr() : nullptr;
    args.weight_stride = weight ? weight->stride(0) : 0;
    args.chunk = kChunk;
    args.chunks = std::max<int64_t>(1, ceil_div(args.layout.size, kChunk));
    args.precision_kind = Precision::none;
    args.precision = nullptr;
    if (logvar_)
      prepare_precision(computed_size(dtype_of("value", value)));
  }

  int64_t items() const {
    return args.layout.rows * args.chunks;
  }

  // items that are worth a thread
  int64_t grain() const {
    return std::max<int64_t>(1, kGrain / std::clamp<int64_t>(args.layout.size, 1, args.chunk));
  }

  GaussianArgs args;
  const GaussianKernels& kernels;
  int64_t shared;    // elements of logvar
  double logdet = 0; // of one sample's covariance: logvar counted at every position

private:
  void prepare_precision(int64_t element) {
    const void* logvar = logvar_->data_ptr();
    const int64_t size = args.layout.size;
    const int64_t bytes = logvar_->element_size();
    const int64_t pieces = ceil_div(shared, kChunk);
    Scratch sums(pieces * sizeof(double));
    double* sum = sums.as<double>();
    char* compact = compact_.as<char>();
    parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i * kChunk, n = std::min(kChunk, shared - at);
        sum[i] = kernels.precision(static_cast<const char*>(logvar) + at * bytes,
                                   compact + at * element, n);
      }
    });
    for (int64_t i = 0; i < pieces && size > 0; ++i)
      logdet += sum[i] * static_cast<double>(size / shared);

    args.precision = compact;
    args.precision_kind = shared == 1 ? Precision::scalar : Precision::vector;
    Operand& operand = args.layout.operand[kPrecision];
    if (shared > 1 && !operand.dense && size <= kExpanded && args.layout.rows > 1) {
      expanded_.emplace(size * element);
      kernels.expand(args.layout, compact, expanded_->as<void>());
      args.precision = expanded_->as<void>();
      operand.dense = true;
    }
  }

  std::optional<Tensor> logvar_;
  Scratch compact_;
  std::optional<Scratch> expanded_;
};

Tensor gaussian_energy(const Tensor& value, const Tensor& pred,
                       const std::optional<Tensor>& logvar) {
  check_gaussian(value, pred, logvar);
  const int64_t rows = value.size(0);
  const Tensor energy = allocate({&rows, 1}, value);

  Call call(value, pred, logvar, nullptr, nullptr, nullptr);
  Scratch scratch(call.items() * sizeof(double));
  double* sums = scratch.as<double>();
  parallel_for(0, call.items(), call.grain(), [&](int64_t begin, int64_t end) {
    call.kernels.energy(call.args, sums, begin, end);
  });
  const int64_t chunks = call.args.chunks;
  for (int64_t row = 0; row < rows; ++row) {
    double total = call.logdet;
    for (int64_t c = 0; c < chunks; ++c)
      total += sums[row * chunks + c];
    sums[row] = 0.5 * total; // item `row` has been read: row <= row * chunks
  }
  call.kernels.convert(sums, energy.data_ptr(), rows);
  return energy;
}

std::tuple<Tensor, Tensor> gaussian_energy_backward(const Tensor& grad, const Tensor& value,
                                                    const Tensor& pred,
                                                    const std::optional<Tensor>& logvar) {
  check_gaussian(value, pred, logvar);
  check_batch("grad", grad, "value", value);
  Tensor grad_value = allocate_like(value), grad_pred = allocate_like(pred);

  Call call(value, pred, logvar, &grad, &grad_value, &grad_pred);
  parallel_for(0, call.items(), call.grain(), [&](int64_t begin, int64_t end) {
    call.kernels.residual(call.args, grad_value.data_ptr(), grad_pred.data_ptr(), begin, end);
  });
  return {grad_value, grad_pred};
}

// The gradient for logvar is summed per slot, a slot being a range of rows and, where positions of
// different ranges share an element of logvar, a range of positions; then the slots are summed.
std::tuple<Tensor, Tensor, Tensor> gaussian_energy_backward_logvar(const Tensor& grad,
                                                                   const Tensor& value,
                                                                   const Tensor& pred,
                                                                   const Tensor& logvar) {
  check_gaussian(value, pred, logvar);
  check_batch("grad", grad, "value", value);
  Tensor grad_value = allocate_like(value), grad_pred = allocate_like(pred);
  Tensor grad_logvar = allocate(logvar.sizes(), logvar);

  Call call(value, pred, logvar, &grad, &grad_value, &grad_pred);
  const int64_t rows = call.args.layout.rows, size = call.args.layout.size, shared = call.shared;
  const bool dense = call.args.layout.operand[kLogvar].dense;
  const int64_t row_range = std::max<int64_t>(16, ceil_div(rows, 64));
  const int64_t row_ranges = size > 0 ? ceil_div(rows, row_range) : 0;
  // A slot for every range of positions must stay small beside the data.
  const int64_t range = dense || shared <= 4096 ? kChunk : std::max<int64_t>(1, size);
  const int64_t ranges = ceil_div(size, range);
  const int64_t slots = dense ? row_ranges : row_ranges * ranges;
  Scratch scratch(std::max<int64_t>(1, slots) * shared * sizeof(double));
  double* sums = scratch.as<double>();
  const int64_t item_size = row_range * std::min(size, range);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, item_size));
  parallel_for(0, row_ranges * ranges, grain, [&](int64_t item, int64_t last) {
    for (; item < last; ++item) {
      const int64_t row = item / ranges * row_range, begin = item % ranges * range;
      const int64_t row_end = std::min(rows, row + row_range), end = std::min(size, begin + range);
      double* slot = sums + (dense ? item / ranges : item) * shared;
      std::fill(slot + (dense ? begin : 0), slot + (dense ? end : shared), 0.0);
      call.kernels.residual_logvar(call.args, grad_value.data_ptr(), grad_pred.data_ptr(), slot,
                                   row, row_end, begin, end);
    }
  });
  parallel_for(0, shared, kGrain / std::max<int64_t>(1, slots) + 1,
               [&](int64_t begin, int64_t end) {
                 if (slots == 0)
                   std::fill(sums + begin, sums + end, 0.0);
                 for (int64_t s = 1; s < slots; ++s)
                   for (int64_t i = begin; i < end; ++i)
                     sums[i] += sums[s * shared + i];
                 for (int64_t i = begin; i < end; ++i)
                   sums[i] *= 0.5;
               });
  call.kernels.convert(sums, grad_logvar.data_ptr(), shared);
  return {grad_value, grad_pred, grad_logvar};
}

Tensor gaussian_error(const Tensor& value, const Tensor& pred, const std::optional<Tensor>& logvar,
                      const std::optional<Tensor>& weight) {
  check_gaussian(value, pred, logvar);
  if (weight)
    check_batch("weight", *weight, "value", value);
  Tensor error = allocate_like(value);

  Call call(value, pred, logvar, weight ? &*weight : nullptr, &error, nullptr);
  parallel_for(0, call.items(), call.grain(), [&](int64_t begin, int64_t end) {
    call.kernels.residual(call.args, error.data_ptr(), nullptr, begin, end);
  });
  return error;
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("gaussian_energy", TORCH_BOX(&gaussian_energy));
  m.impl("gaussian_energy_backward", TORCH_BOX(&gaussian_energy_backward));
  m.impl("gaussian_energy_backward_logvar", TORCH_BOX(&gaussian_energy_backward_logvar));
  m.impl("gaussian_error", TORCH_BOX(&gaussian_error));
}

} // namespace
} // namespace pyromancy
