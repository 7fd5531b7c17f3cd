#include "multivariate_kernel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "host.h"

namespace pyromancy {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;

// Multiply-adds that are worth waking another thread for.
constexpr int64_t kSolveGrain = 1 << 20;

// The type that a tensor is computed in.
DType compute_dtype(const Tensor& t) {
  return computed_in(dtype_of("value", t));
}

bool is_half(const Tensor& t) {
  const DType dtype = dtype_of("value", t);
  return dtype == DType::bfloat16 || dtype == DType::float16;
}

// The kernels know float32 and float64. Conversion costs O(n) per row beside O(n^2).
Tensor widened(const Tensor& t) {
  return is_half(t) ? torch::stable::to(t, ScalarType::Float) : t;
}

Tensor narrowed(const Tensor& t, const Tensor& like) {
  return is_half(like) ? torch::stable::to(t, like.scalar_type()) : t;
}

Tensor packed(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// widened, with the elements of a row side by side
Tensor as_rows(const Tensor& t) {
  const Tensor wide = widened(t);
  return wide.size(2) <= 1 || wide.stride(2) == 1 ? wide : torch::stable::contiguous(wide);
}

// Rows to solve for, and the factor they are solved with.
class Call {
public:
  // The right-hand side is value - pred, or value alone.
  Call(const Tensor& value, const Tensor* pred, const Tensor& factor)
      : kernels(PYROMANCY_SELECT_KERNELS(multivariate_kernels, compute_dtype(value))),
        value_(as_rows(value)), factor_(packed(widened(factor))),
        reciprocal_(value.size(2) * value_.element_size()) {
    args.positions = value.size(1);
    args.rows = value.size(0) * args.positions;
    args.n = value.size(2);
    args.value = value_.data_ptr();
    args.value_sample = value_.stride(0);
    args.value_position = value_.stride(1);
    args.pred = nullptr;
    if (pred) {
      pred_ = as_rows(*pred);
      args.pred = pred_->data_ptr();
      args.pred_sample = pred_->stride(0);
      args.pred_position = pred_->stride(1);
    }
    args.factor = factor_.data_ptr();
    args.reciprocal = reciprocal_.as<void>();
    with_computed(compute_dtype(factor_), [&](auto zero) {
      using T = decltype(zero);
      const T* l = data<T>(factor_);
      for (int64_t i = 0; i < args.n; ++i)
        reciprocal_.as<T>()[i] = 1 / l[i * args.n + i];
    });
    // As wide as possible while there is a panel for every thread. A row's result does not depend
    // on the width, as each lane has its own row.
    const int64_t vectors = ceil_div(args.rows, kernels.lanes);
    const int64_t threads = torch::stable::get_num_threads();
    args.vectors = std::clamp<int64_t>(ceil_div(vectors, threads), 1, kernels.max_vectors);
  }

  // run(workspace, begin, end) over the panels
  template <class F>
  void launch(F run) const {
    if (args.rows == 0 || args.n == 0)
      return;
    const int64_t height = args.vectors * kernels.lanes;
    // Beside n^2 / 2 multiply-adds, a row has O(n) of work for its transposition.
    const int64_t cost = height * args.n * (args.n / 2 + 16);
    parallel_for(0, ceil_div(args.rows, height), kSolveGrain / cost + 1,
                 [&](int64_t begin, int64_t end) {
                   Scratch workspace(args.n * height * value_.element_size());
                   run(workspace.as<void>(), begin, end);
                 });
  }

  const MultivariateKernels& kernels;
  MultivariateArgs args;

private:
  Tensor value_, factor_;
  std::optional<Tensor> pred_;
  Scratch reciprocal_;
};

std::tuple<Tensor, Tensor> multivariate_energy(const Tensor& value, const Tensor& pred,
                                               const Tensor& factor) {
  check_state(value, pred);
  check_factor("value", value, factor);
  const int64_t batch = value.size(0);
  const Call call(value, &pred, factor);
  const Tensor wide = widened(factor);
  const Tensor energy = allocate({&batch, 1}, wide);
  const Tensor whitened = allocate(value.sizes(), wide);

  const MultivariateArgs& args = call.args;
  Scratch scratch(args.rows * sizeof(double));
  double* norms = scratch.as<double>();
  std::fill(norms, norms + args.rows, 0.0);
  call.launch([&](void* workspace, int64_t begin, int64_t end) {
    call.kernels.whiten(args, workspace, whitened.data_ptr(), norms, begin, end);
  });
  with_computed(compute_dtype(wide), [&](auto zero) {
    using T = decltype(zero);
    const T* l = static_cast<const T*>(args.factor);
    double logdet = 0;
    for (int64_t i = 0; i < args.n; ++i)
      logdet += std::log(static_cast<double>(l[i * args.n + i]));
    const int64_t positions = args.positions;
    for (int64_t b = 0; b < batch; ++b) {
      double norm = 0;
      for (int64_t p = 0; p < positions; ++p)
        norm += norms[b * positions + p];
      data<T>(energy)[b] = static_cast<T>(0.5 * norm + static_cast<double>(positions) * logdet);
    }
  });
  return {narrowed(energy, value), narrowed(whitened, value)};
}

std::tuple<Tensor, Tensor> multivariate_energy_backward(const Tensor& grad, const Tensor& whitened,
                                                        const Tensor& factor) {
  check_factor("whitened", whitened, factor);
  dtype_of("whitened", whitened);
  check_batch("grad", grad, "whitened", whitened);
  const Call call(whitened, nullptr, factor);
  const Tensor weight = widened(grad);
  const Tensor grad_value = allocate(whitened.sizes(), weight);
  const Tensor grad_pred = allocate(whitened.sizes(), weight);

  call.launch([&](void* workspace, int64_t begin, int64_t end) {
    call.kernels.unwhiten(call.args, workspace, weight.data_ptr(), weight.stride(0),
                          grad_value.data_ptr(), grad_pred.data_ptr(), begin, end);
  });
  return {narrowed(grad_value, whitened), narrowed(grad_pred, whitened)};
}

Tensor multivariate_error(const Tensor& value, const Tensor& pred, const Tensor& factor) {
  check_state(value, pred);
  check_factor("value", value, factor);
  const Call call(value, &pred, factor);
  const Tensor error = allocate(value.sizes(), widened(factor));

  call.launch([&](void* workspace, int64_t begin, int64_t end) {
    call.kernels.solve(call.args, workspace, error.data_ptr(), begin, end);
  });
  return narrowed(error, value);
}

// With y = L^-T u the gradient for L of 1/2 |u|^2 is -y u^T, and of log det L it is 1 / diag(L).
Tensor multivariate_energy_backward_factor(const Tensor& grad, const Tensor& whitened,
                                           const Tensor& grad_value, const Tensor& factor) {
  check_factor("whitened", whitened, factor);
  dtype_of("whitened", whitened);
  check_batch("grad", grad, "whitened", whitened);
  check_same("grad_value", grad_value, "whitened", whitened);
  const Tensor a = packed(widened(grad_value)), b = packed(widened(whitened));
  const Tensor weight = widened(grad), wide_factor = widened(factor);
  const Tensor out = allocate(factor.sizes(), wide_factor);

  with_computed(compute_dtype(out), [&](auto zero) {
    using T = decltype(zero);
    const MultivariateKernels& kernels =
        PYROMANCY_SELECT_KERNELS(multivariate_kernels, compute_dtype(out));
    const int64_t batch = whitened.size(0), positions = whitened.size(1), n = whitened.size(2);
    const int64_t rows = batch * positions;
    // Where the matrix is too small to share out, the rows are cut into segments, each with a sum
    // of its own. The cut depends on shapes alone.
    const int64_t bands = ceil_div(n, kOuterBand);
    const int64_t wanted = std::min(ceil_div(32, std::max<int64_t>(1, bands)), ceil_div(rows, 512));
    const int64_t segments = std::max<int64_t>(1, wanted);
    const int64_t segment = ceil_div(rows, segments);
    const int64_t pitch = ceil_div(n, kernels.lanes) * kernels.lanes;
    Scratch scratch(segments * n * pitch * sizeof(T));
    T* sums = scratch.as<T>();
    const int64_t cost = std::max<int64_t>(1, segment * kOuterBand * n / 2);
    parallel_for(0, segments * bands, kSolveGrain / cost + 1, [&](int64_t item, int64_t last) {
      while (item < last) {
        const int64_t s = item / bands, stop = std::min(last, (s + 1) * bands);
        kernels.outer(data<T>(a), data<T>(b), n, s * segment, std::min(rows, (s + 1) * segment),
                      sums + s * n * pitch, pitch, item - s * bands, stop - s * bands);
        item = stop;
      }
    });

    double total = 0;
    const int64_t weight_stride = weight.stride(0);
    for (int64_t i = 0; i < batch; ++i)
      total += data<T>(weight)[i * weight_stride];
    total *= static_cast<double>(positions);
    const T* l = data<T>(wide_factor);
    const int64_t diagonal = wide_factor.stride(0) + wide_factor.stride(1);
    parallel_for(0, n, kGrain / std::max<int64_t>(1, n) + 1, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        T* row = data<T>(out) + i * n;
        std::copy(sums + i * pitch, sums + i * pitch + i + 1, row);
        for (int64_t s = 1; s < segments; ++s)
          for (int64_t j = 0; j <= i; ++j)
            row[j] += sums[(s * n + i) * pitch + j];
        row[i] += static_cast<T>(total / static_cast<double>(l[i * diagonal]));
        std::fill(row + i + 1, row + n, T(0));
      }
    });
  });
  return narrowed(out, whitened);
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("multivariate_energy", TORCH_BOX(&multivariate_energy));
  m.impl("multivariate_energy_backward", TORCH_BOX(&multivariate_energy_backward));
  m.impl("multivariate_energy_backward_factor", TORCH_BOX(&multivariate_energy_backward_factor));
  m.impl("multivariate_error", TORCH_BOX(&multivariate_error));
}

} // namespace
} // namespace pyromancy
