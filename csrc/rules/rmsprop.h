#pragma once

#include "decay.h"
#include "slots.h"

namespace pyromancy::PYROMANCY_TARGET {

// torch.optim.RMSprop; centered where there is a mean
struct RmsProp {
  static constexpr int64_t kFirstSlot = 1, kEndSlot = 4;

  template <class C>
  static PYROMANCY_FORMULA void apply(const LearnStep& step, Vec<C> gradient, Vec<C>& parameter,
                                      Slots<C>& slots) {
    const Rule& rule = step.rule;
    Vec<C>&square = slots.of[1], &velocity = slots.of[2], &mean = slots.of[3];
    const Vec<C> fresh = splat(static_cast<C>(1 - rule.first));
    gradient = decay<C>(rule, gradient, parameter);
    square = fma(fresh * gradient, gradient, splat(static_cast<C>(rule.first)) * square);
    Vec<C> variance = square;
    if (slots.has[3]) {
      mean = fma(fresh, gradient - mean, mean);
      variance = fnma(mean, mean, square);
    }
    Vec<C> change = divide(gradient, square_root<C>(variance) + static_cast<C>(rule.epsilon));
    if (slots.has[2])
      change = velocity = fma(splat(static_cast<C>(rule.second)), velocity, change);
    parameter = fnma(splat(static_cast<C>(rule.lr)), change, parameter);
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
