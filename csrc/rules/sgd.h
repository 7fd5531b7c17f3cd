#pragma once

#include "decay.h"
#include "descent.h"
#include "slots.h"

namespace pyromancy::PYROMANCY_TARGET {

// torch.optim.SGD
struct Sgd {
  static constexpr int64_t kFirstSlot = 0, kEndSlot = 1;

  template <class C>
  static PYROMANCY_FORMULA void apply(const LearnStep& step, Vec<C> gradient, Vec<C>& parameter,
                                      Slots<C>& slots) {
    const Rule& rule = step.rule;
    gradient = decay<C>(rule, gradient, parameter);
    if (rule.first != 0)
      gradient = accelerate<C>(gradient, slots.of[0], splat(static_cast<C>(rule.first)),
                               splat(static_cast<C>(1 - rule.second)), rule.nesterov, rule.fresh);
    parameter = descend<C>(parameter, gradient, splat(static_cast<C>(rule.lr)));
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
