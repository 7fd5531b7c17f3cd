#pragma once

#include "decay.h"
#include "descent.h"

namespace pyromancy::PYROMANCY_TARGET {

// torch.optim.SGD
template <class C>
PYROMANCY_FORMULA void sgd(const Rule& rule, Vec<C> gradient, Vec<C>& parameter, Vec<C>& velocity) {
  gradient = decay<C>(rule, gradient, parameter);
  if (rule.first != 0)
    gradient = accelerate<C>(gradient, velocity, splat(static_cast<C>(rule.first)),
                             splat(static_cast<C>(1 - rule.second)), rule.nesterov, rule.fresh);
  parameter = descend<C>(parameter, gradient, splat(static_cast<C>(rule.lr)));
}

} // namespace pyromancy::PYROMANCY_TARGET
