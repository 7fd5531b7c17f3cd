#include "estep_kernel.h"

#include "../rules/descent.h"
#include "blocks.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// Calls f(position, count, gradient) for each block, gradient(i, extent) giving the vector
// error - feedback at element i of the block.
template <class T, class F>
void for_gradients(const EstepArgs& a, int64_t begin, int64_t end, F f) {
  Input<T> error(a.error, a.layout, kError), feedback(a.feedback, a.layout, kFeedback);
  for (int64_t p = begin; p < end; p += kBlock) {
    const int64_t n = smaller(kBlock, end - p);
    const T* e = error.block(0, p, n);
    if (a.feedback) {
      const T* b = feedback.block(0, p, n);
      f(p, n, [&](int64_t i, auto extent) { return load(e + i, extent) - load(b + i, extent); });
    } else {
      f(p, n, [&](int64_t i, auto extent) { return load(e + i, extent); });
    }
  }
}

template <class T>
void step(const EstepArgs& a, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Input<T> state(a.state, a.layout, kState);
  Output<T> moved(a.state, a.layout, kState);
  const Vec<C> lr = splat(static_cast<C>(a.lr));
  for_gradients<T>(a, begin, end, [&](int64_t p, int64_t n, auto gradient) {
    const T* z = state.block(0, p, n);
    T* out = moved.block(0, p);
    for_vectors<C>(n, [&](int64_t i, auto extent) {
      store(out + i, descend<C>(load(z + i, extent), gradient(i, extent), lr), extent);
    });
    moved.commit(0, p, n);
  });
}

template <class T>
void step_with_momentum(const EstepArgs& a, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Input<T> state(a.state, a.layout, kState), velocity(a.velocity, a.layout, kVelocity);
  Output<T> moved(a.state, a.layout, kState), kept(a.velocity, a.layout, kVelocity);
  const Vec<C> lr = splat(static_cast<C>(a.lr)), momentum = splat(static_cast<C>(a.momentum));
  const Vec<C> undamped = splat(static_cast<C>(1 - a.dampening));
  for_gradients<T>(a, begin, end, [&](int64_t p, int64_t n, auto gradient) {
    const T* z = state.block(0, p, n);
    const T* u = velocity.block(0, p, n);
    T* out = moved.block(0, p);
    T* out_velocity = kept.block(0, p);
    for_vectors<C>(n, [&](int64_t i, auto extent) {
      Vec<C> v = load(u + i, extent);
      const Vec<C> g = accelerate<C>(gradient(i, extent), v, momentum, undamped, a.nesterov, false);
      store(out_velocity + i, v, extent);
      store(out + i, descend<C>(load(z + i, extent), g, lr), extent);
    });
    moved.commit(0, p, n);
    kept.commit(0, p, n);
  });
}

template <class T>
constexpr EstepKernels table() {
  return {step<T>, step_with_momentum<T>};
}

} // namespace

extern const EstepKernels estep_kernels[kDTypes] = {table<float>(), table<double>(),
                                                    table<bfloat16>(), table<float16>()};

} // namespace pyromancy::PYROMANCY_ISA
