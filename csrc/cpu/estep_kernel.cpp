#include "estep_kernel.h"

#include "../rules/descent.h"
#include "blocks.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

template <class T>
void step(const EstepArgs& a, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Input<T> state(a.state, a.layout, kState), error(a.error, a.layout, kError);
  Input<T> feedback(a.feedback, a.layout, kFeedback), velocity(a.velocity, a.layout, kVelocity);
  Output<T> moved(a.state, a.layout, kState), kept(a.velocity, a.layout, kVelocity);
  const Vec<C> lr = splat(static_cast<C>(a.lr)), momentum = splat(static_cast<C>(a.momentum));
  const Vec<C> undamped = splat(static_cast<C>(1 - a.dampening));
  for (int64_t p = begin; p < end; p += kBlock) {
    const int64_t n = smaller(kBlock, end - p);
    const T* z = state.block(0, p, n);
    const T* e = error.block(0, p, n);
    const T* b = a.feedback ? feedback.block(0, p, n) : nullptr;
    const T* u = a.velocity ? velocity.block(0, p, n) : nullptr;
    T* out = moved.block(0, p);
    T* out_velocity = a.velocity ? kept.block(0, p) : nullptr;
    for_vectors<C>(n, [&](int64_t i, auto extent) {
      Vec<C> descent = load(e + i, extent);
      if (b)
        descent = descent - load(b + i, extent);
      if (u) {
        Vec<C> v = load(u + i, extent);
        descent = accelerate<C>(descent, v, momentum, undamped, a.nesterov, false);
        store(out_velocity + i, v, extent);
      }
      store(out + i, descend<C>(load(z + i, extent), descent, lr), extent);
    });
    moved.commit(0, p, n);
    if (u)
      kept.commit(0, p, n);
  }
}

} // namespace

extern const EstepKernel estep_kernels[kDTypes] = {step<float>, step<double>, step<bfloat16>,
                                                   step<float16>};

} // namespace pyromancy::PYROMANCY_ISA
