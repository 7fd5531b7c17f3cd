#include "estep_kernel.h"

#include "../rules/descent.h"
#include "launch.h"

namespace pyromancy::cuda {
namespace {

// The step at positions [p, p + V). Every element is read before it is written, by one thread, so
// that error and feedback may be the state itself.
template <class T, int V, bool has_momentum>
__device__ inline void step(const EstepArgs& a, int64_t p) {
  using C = Compute<T>;
  C descent[V], state[V];
  load<V>(descent, static_cast<const T*>(a.error) + offset_of<V>(a.extent, a.error_at, p));
  if (a.feedback) {
    C feedback[V];
    load<V>(feedback, static_cast<const T*>(a.feedback) + offset_of<V>(a.extent, a.feedback_at, p));
#pragma unroll
    for (int k = 0; k < V; ++k)
      descent[k] -= feedback[k];
  }
  T* at = static_cast<T*>(a.state) + offset_of<V>(a.extent, a.state_at, p);
  load<V>(state, at);
  if constexpr (has_momentum) {
    const C momentum = static_cast<C>(a.momentum), undamped = static_cast<C>(1 - a.dampening);
    C velocity[V];
    T* velocity_at = static_cast<T*>(a.velocity) + offset_of<V>(a.extent, a.velocity_at, p);
    load<V>(velocity, velocity_at);
#pragma unroll
    for (int k = 0; k < V; ++k)
      descent[k] = accelerate<C>(descent[k], velocity[k], momentum, undamped, a.nesterov, false);
    store<V>(velocity_at, velocity);
  }
#pragma unroll
  for (int k = 0; k < V; ++k)
    state[k] = descend<C>(state[k], descent[k], static_cast<C>(a.lr));
  store<V>(at, state);
}

template <class T, int V, bool has_momentum>
__global__ void __launch_bounds__(kThreads) estep_kernel(const EstepArgs a) {
  const int64_t packs = a.extent.size / V;
  for (int64_t i = first_thread(); i < packs; i += all_threads())
    step<T, V, has_momentum>(a, i * V);
  const int64_t rest = packs * V + first_thread();
  if (rest < a.extent.size)
    step<T, 1, has_momentum>(a, rest);
}

template <class T, bool has_momentum>
void launch_step(const EstepArgs& args, void* stream) {
  const int64_t size = args.extent.size;
  if (args.packed)
    launch(estep_kernel<T, kPack<T>, has_momentum>, blocks_for(size, kPack<T> * kThreads), stream,
           args);
  else
    launch(estep_kernel<T, 1, has_momentum>, blocks_for(size, kThreads), stream, args);
}

} // namespace

void launch_estep(const EstepArgs& args, void* stream) {
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.velocity)
      launch_step<T, true>(args, stream);
    else
      launch_step<T, false>(args, stream);
  });
}

} // namespace pyromancy::cuda
