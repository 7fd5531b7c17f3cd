#include "estep_kernel.h"

#include <torch/csrc/stable/library.h>

#include "host.h"

namespace pyromancy {
namespace {

// A piece of work: whole blocks of the kernels, few enough elements to share a small state out.
constexpr int64_t kPiece = 8192;

void launch(void (*kernel)(const EstepArgs&, int64_t, int64_t), const Tensor& value,
            const Tensor& error, const std::optional<Tensor>& feedback, const Tensor* velocity,
            EstepArgs& args) {
  const Sizes sizes = value.sizes();
  const int64_t* strides = value.strides().data();
  args.layout =
      make_layout(sizes.data(), sizes.size(), false,
                  {strides, error.strides().data(), feedback ? feedback->strides().data() : strides,
                   velocity ? velocity->strides().data() : strides});
  args.state = value.data_ptr();
  args.error = error.data_ptr();
  args.feedback = feedback ? feedback->data_ptr() : nullptr;
  args.velocity = velocity ? velocity->data_ptr() : nullptr;
  const int64_t size = args.layout.size;
  torch::stable::parallel_for(
      0, ceil_div(size, kPiece), kGrain / kPiece, [&](int64_t begin, int64_t end) {
        kernel(args, begin * kPiece, end * kPiece < size ? end * kPiece : size);
      });
}

void estep_(const Tensor& value, const Tensor& error, const std::optional<Tensor>& feedback,
            double lr) {
  check_estep(value, error, feedback, lr);
  const EstepKernels& kernels = PYROMANCY_SELECT_KERNELS(estep_kernels, dtype_of("value", value));
  EstepArgs args;
  args.lr = lr;
  launch(kernels.descend, value, error, feedback, nullptr, args);
}

void estep_momentum_(const Tensor& value, const Tensor& buffer, const Tensor& error,
                     const std::optional<Tensor>& feedback, double lr, double momentum,
                     double dampening, bool nesterov) {
  check_estep(value, error, feedback, lr);
  check_momentum(value, buffer, error, feedback, momentum, dampening);
  const EstepKernels& kernels = PYROMANCY_SELECT_KERNELS(estep_kernels, dtype_of("value", value));
  EstepArgs args;
  args.lr = lr;
  args.momentum = momentum;
  args.dampening = dampening;
  args.nesterov = nesterov;
  launch(kernels.descend_momentum, value, error, feedback, &buffer, args);
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("estep_", TORCH_BOX(&estep_));
  m.impl("estep_momentum_", TORCH_BOX(&estep_momentum_));
}

} // namespace
} // namespace pyromancy
