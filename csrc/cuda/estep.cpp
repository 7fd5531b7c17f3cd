#include "estep_kernel.h"

#include <torch/csrc/stable/library.h>

#include "host.h"

namespace pyromancy::cuda {
namespace {

void estep_(const Tensor& value, const std::optional<Tensor>& buffer, const Tensor& error,
            const std::optional<Tensor>& feedback, double lr, double momentum, double dampening,
            bool nesterov) {
  check_estep(value, buffer, error, feedback, lr, momentum, dampening);
  const Context context(value);
  const Sizes sizes = value.sizes();
  const int64_t* strides = value.strides().data();
  const Layout layout =
      make_layout(sizes.data(), sizes.size(), false,
                  {strides, error.strides().data(), feedback ? feedback->strides().data() : strides,
                   buffer ? buffer->strides().data() : strides});
  EstepArgs args{};
  args.extent = extent_of(layout);
  args.dtype = dtype_of("value", value);
  args.state_at = operand_of(layout, 0);
  args.error_at = operand_of(layout, 1);
  args.feedback_at = operand_of(layout, 2);
  args.velocity_at = operand_of(layout, 3);
  args.state = value.data_ptr();
  args.error = error.data_ptr();
  args.feedback = feedback ? feedback->data_ptr() : nullptr;
  args.velocity = buffer ? buffer->data_ptr() : nullptr;
  args.lr = lr;
  args.momentum = momentum;
  args.dampening = dampening;
  args.nesterov = nesterov;
  const int64_t element = value.element_size();
  const auto packed = [&](const Operand& at, const void* data) {
    return !data || is_packed(args.extent, at, data, element);
  };
  args.packed = packed(args.state_at, args.state) && packed(args.error_at, args.error) &&
                packed(args.feedback_at, args.feedback) && packed(args.velocity_at, args.velocity);
  launch_estep(args, context.stream);
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("estep_", TORCH_BOX(&estep_));
}

} // namespace
} // namespace pyromancy::cuda
