#include "estep_kernel.h"

#include <torch/csrc/stable/library.h>

#include "host.h"

namespace pyromancy::cuda {
namespace {

void launch(const Tensor& value, const Tensor& error, const std::optional<Tensor>& feedback,
            const Tensor* velocity, EstepArgs& args) {
  const Context context(value);
  const Sizes sizes = value.sizes();
  const int64_t* strides = value.strides().data();
  const Layout layout =
      make_layout(sizes.data(), sizes.size(), false,
                  {strides, error.strides().data(), feedback ? feedback->strides().data() : strides,
                   velocity ? velocity->strides().data() : strides});
  args.extent = extent_of(layout);
  args.dtype = dtype_of("value", value);
  args.state_at = operand_of(layout, 0);
  args.error_at = operand_of(layout, 1);
  args.feedback_at = operand_of(layout, 2);
  args.velocity_at = operand_of(layout, 3);
  args.state = value.data_ptr();
  args.error = error.data_ptr();
  args.feedback = feedback ? feedback->data_ptr() : nullptr;
  args.velocity = velocity ? velocity->data_ptr() : nullptr;
  const int64_t element = value.element_size();
  const auto packed = [&](const Operand& at, const void* data) {
    return !data || is_packed(args.extent, at, data, element);
  };
  args.packed = packed(args.state_at, args.state) && packed(args.error_at, args.error) &&
                packed(args.feedback_at, args.feedback) && packed(args.velocity_at, args.velocity);
  launch_estep(args, context.stream);
}

void estep_(const Tensor& value, const Tensor& error, const std::optional<Tensor>& feedback,
            double lr) {
  check_estep(value, error, feedback, lr);
  EstepArgs args{};
  args.lr = lr;
  launch(value, error, feedback, nullptr, args);
}

void estep_momentum_(const Tensor& value, const Tensor& buffer, const Tensor& error,
                     const std::optional<Tensor>& feedback, double lr, double momentum,
                     double dampening, bool nesterov) {
  check_estep(value, error, feedback, lr);
  check_momentum(value, buffer, error, feedback, momentum, dampening);
  EstepArgs args{};
  args.lr = lr;
  args.momentum = momentum;
  args.dampening = dampening;
  args.nesterov = nesterov;
  launch(value, error, feedback, &buffer, args);
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CUDA, m) {
  m.impl("estep_", TORCH_BOX(&estep_));
  m.impl("estep_momentum_", TORCH_BOX(&estep_momentum_));
}

} // namespace
} // namespace pyromancy::cuda
