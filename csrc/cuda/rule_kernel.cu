#include "rule_kernel.h"

#include "../rules/rules.h"
#include "launch.h"

namespace pyromancy::cuda {
namespace {

template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4) rule_kernel(const RuleArgs a) {
  LearnStep step = a.step;
  if (a.counted) {
    step.step_size = a.counted->step_size;
    step.root_factor = a.counted->root_factor;
  }
  with_rule(a.step.rule.kind, [&](auto rule) {
    using R = decltype(rule);
    for (int64_t at = first_thread() * V; at < a.size; at += all_threads() * V) {
      T gradient[V], parameter[V], kept[V];
      Slots<T> slots[V];
      load<V>(gradient, static_cast<const T*>(a.gradient) + at);
      load<V>(parameter, static_cast<const T*>(a.parameter) + at);
#pragma unroll
      for (int64_t s = R::kFirstSlot; s < R::kEndSlot; ++s) {
        const bool has = a.slots[s];
        if (has)
          load<V>(kept, static_cast<const T*>(a.slots[s]) + at);
#pragma unroll
        for (int k = 0; k < V; ++k) {
          slots[k].has[s] = has;
          slots[k].of[s] = has ? kept[k] : T(0);
        }
      }
#pragma unroll
      for (int k = 0; k < V; ++k)
        R::template apply<T>(step, gradient[k], parameter[k], slots[k]);
      store<V>(static_cast<T*>(a.parameter) + at, parameter);
#pragma unroll
      for (int64_t s = R::kFirstSlot; s < R::kEndSlot; ++s) {
        if (!a.slots[s])
          continue;
#pragma unroll
        for (int k = 0; k < V; ++k)
          kept[k] = slots[k].of[s];
        store<V>(static_cast<T*>(a.slots[s]) + at, kept);
      }
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) count_kernel(const CountArgs a) {
  if (first_thread() == 0)
    *a.counted = LearnStep(a.rule, *static_cast<T*>(a.count) += 1);
}

} // namespace

void launch_rule(const RuleArgs& a, void* stream) {
  with_float(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(a.size, {a.gradient, a.parameter, a.slots[0], a.slots[1], a.slots[2], a.slots[3]},
                 [&](auto pack) {
                   launch(rule_kernel<T, pack>, blocks_for(a.size, pack * kThreads), stream, a);
                 });
  });
}

void launch_count(const CountArgs& a, void* stream) {
  with_float(a.dtype, [&](auto zero) { launch(count_kernel<decltype(zero)>, 1, stream, a); });
}

} // namespace pyromancy::cuda
