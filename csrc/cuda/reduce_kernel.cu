#include "reduce_kernel.h"

#include "launch.h"

namespace pyromancy::cuda {
namespace {

template <class T, int group>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const ReduceArgs a) {
  using C = Compute<T>;
  const int64_t slice = (a.count + a.slices - 1) / a.slices;
  const int64_t items = a.kept * a.slices;
  const int lane = threadIdx.x % group;
  for (int64_t item = first_thread() / group; item < items; item += all_threads() / group) {
    const int64_t j = quotient(item, a.slices), begin = (item - j * a.slices) * slice;
    const int64_t end = a.count < begin + slice ? a.count : begin + slice;
    const C* in =
        static_cast<const C*>(a.in) + offset_under(a.kept_dims, a.kept_shape, a.kept_in, j);
    double sum = 0;
    for (int64_t i = begin + lane; i < end; i += group)
      sum += in[offset_under(a.reduced_dims, a.reduced_shape, a.reduced_in, i)];
    sum = sum_over<group>(sum);
    const int64_t at = a.slices > 1 ? item : offset_under(a.kept_dims, a.kept_shape, a.kept_out, j);
    if (lane == 0)
      static_cast<T*>(a.out)[at] = narrow<T>(static_cast<C>(a.scale * sum));
  }
}

} // namespace

void launch_reduce(const ReduceArgs& args, void* stream) {
  const int64_t items = args.kept * args.slices;
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.count <= kWarp * args.slices)
      launch(reduce_kernel<T, 1>, blocks_for(items, kThreads), stream, args);
    else
      launch(reduce_kernel<T, kThreads>, blocks_for(items, 1), stream, args);
  });
}

} // namespace pyromancy::cuda
