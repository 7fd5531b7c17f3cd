#include "layer_norm_kernel.h"

#include <torch/csrc/stable/library.h>

#include "host.h"

namespace pyromancy {
namespace {

template <class Run>
void for_rows(const LayerNormArgs& args, int64_t size, Run run) {
  if (size > 0)
    torch::stable::parallel_for(0, size / args.width, ceil_div(kGrain, args.width),
                                [&](int64_t begin, int64_t end) { run(args, begin, end); });
}

void layer_norm_(Tensor out, const Tensor& input, const std::optional<Tensor>& weight,
                 const std::optional<Tensor>& bias, double eps) {
  const DType dtype = check_layer_norm(out, input, weight, bias, eps);
  const LayerNormArgs args{input.size(-1),
                           eps,
                           input.data_ptr(),
                           weight ? weight->data_ptr() : nullptr,
                           bias ? bias->data_ptr() : nullptr,
                           nullptr,
                           out.data_ptr()};
  for_rows(args, input.numel(), PYROMANCY_SELECT_KERNELS(layer_norm_kernels, dtype).normalize);
}

void layer_norm_backward_(Tensor out, const Tensor& grad, const Tensor& input,
                          const std::optional<Tensor>& weight, double eps) {
  const DType dtype = check_layer_norm_backward(out, grad, input, weight, eps);
  const LayerNormArgs args{input.size(-1),   eps,
                           input.data_ptr(), weight ? weight->data_ptr() : nullptr,
                           nullptr,          grad.data_ptr(),
                           out.data_ptr()};
  for_rows(args, input.numel(),
           PYROMANCY_SELECT_KERNELS(layer_norm_kernels, dtype).normalize_backward);
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("layer_norm_", TORCH_BOX(&layer_norm_));
  m.impl("layer_norm_backward_", TORCH_BOX(&layer_norm_backward_));
}

} // namespace
} // namespace pyromancy
