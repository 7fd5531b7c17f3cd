#pragma once

#include "decay.h"
#include "slots.h"

namespace pyromancy::PYROMANCY_TARGET {

// torch.optim.Adam and AdamW; without a greatest mean square not as AMSGrad
struct Adam {
  static constexpr int64_t kFirstSlot = 1, kEndSlot = 4;

  template <class C>
  static PYROMANCY_FORMULA void apply(const LearnStep& step, Vec<C> gradient, Vec<C>& parameter,
                                      Slots<C>& slots) {
    const Rule& rule = step.rule;
    Vec<C>&mean = slots.of[1], &square = slots.of[2], &greatest = slots.of[3];
    gradient = decay<C>(rule, gradient, parameter);
    mean = fma(splat(static_cast<C>(1 - rule.first)), gradient - mean, mean);
    square = fma(splat(static_cast<C>(1 - rule.second)) * gradient, gradient,
                 splat(static_cast<C>(rule.second)) * square);
    if (slots.has[3])
      greatest = greatest > square ? greatest : square;
    const Vec<C> root =
        square_root<C>(slots.has[3] ? greatest : square) * splat(static_cast<C>(step.root_factor));
    parameter = fnma(splat(static_cast<C>(step.step_size)),
                     divide(mean, root + static_cast<C>(rule.epsilon)), parameter);
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
