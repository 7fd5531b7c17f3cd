#pragma once

#include "decay.h"

namespace pyromancy::PYROMANCY_TARGET {

// torch.optim.Adam and AdamW; without a greatest mean square not as AMSGrad.
template <class C>
PYROMANCY_FORMULA void adam(const LearnStep& step, Vec<C> gradient, Vec<C>& parameter, Vec<C>& mean,
                            Vec<C>& square, Vec<C>* greatest) {
  const Rule& rule = step.rule;
  gradient = decay<C>(rule, gradient, parameter);
  mean = fma(splat(static_cast<C>(1 - rule.first)), gradient - mean, mean);
  square = fma(splat(static_cast<C>(1 - rule.second)) * gradient, gradient,
               splat(static_cast<C>(rule.second)) * square);
  if (greatest)
    *greatest = *greatest > square ? *greatest : square;
  const Vec<C> root = divide(square_root<C>(greatest ? *greatest : square),
                             splat(static_cast<C>(step.root_of_correction)));
  parameter = fnma(splat(static_cast<C>(step.step_size)),
                   divide(mean, root + static_cast<C>(rule.epsilon)), parameter);
}

} // namespace pyromancy::PYROMANCY_TARGET
