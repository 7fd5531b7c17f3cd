#pragma once

#include "../arithmetic.h"
#include "rule.h"

namespace pyromancy::PYROMANCY_TARGET {

// The gradient that a rule goes by, with its weight decay, which may move the parameter instead.
template <class C>
PYROMANCY_FORMULA Vec<C> decay(const Rule& rule, Vec<C> gradient, Vec<C>& parameter) {
  if (rule.maximize)
    gradient = -gradient;
  if (rule.decoupled)
    parameter *= splat(static_cast<C>(1 - rule.lr * rule.weight_decay));
  else if (rule.weight_decay != 0)
    gradient = fma(splat(static_cast<C>(rule.weight_decay)), parameter, gradient);
  return gradient;
}

} // namespace pyromancy::PYROMANCY_TARGET
