#include "estep_kernel.h"

#include <torch/csrc/stable/library.h>

#include "host.h"

namespace pyromancy {
namespace {

// A piece of work: whole blocks of the kernels, few enough elements to share a small state out.
constexpr int64_t kPiece = 8192;

void estep_(const Tensor& value, const std::optional<Tensor>& buffer, const Tensor& error,
            const std::optional<Tensor>& feedback, double lr, double momentum, double dampening,
            bool nesterov) {
  check_estep(value, buffer, error, feedback, lr, momentum, dampening);
  const EstepKernel kernel = PYROMANCY_SELECT_KERNELS(estep_kernels, dtype_of("value", value));
  const Sizes sizes = value.sizes();
  const int64_t* strides = value.strides().data();
  EstepArgs args;
  args.layout =
      make_layout(sizes.data(), sizes.size(), false,
                  {strides, error.strides().data(), feedback ? feedback->strides().data() : strides,
                   buffer ? buffer->strides().data() : strides});
  args.state = value.data_ptr();
  args.error = error.data_ptr();
  args.feedback = feedback ? feedback->data_ptr() : nullptr;
  args.velocity = buffer ? buffer->data_ptr() : nullptr;
  args.lr = lr;
  args.momentum = momentum;
  args.dampening = dampening;
  args.nesterov = nesterov;
  const int64_t size = args.layout.size;
  torch::stable::parallel_for(
      0, ceil_div(size, kPiece), kGrain / kPiece, [&](int64_t begin, int64_t end) {
        kernel(args, begin * kPiece, end * kPiece < size ? end * kPiece : size);
      });
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("estep_", TORCH_BOX(&estep_));
}

} // namespace
} // namespace pyromancy
