#pragma once

// Descent with momentum as torch.optim.SGD has it, of states and of weights.

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

// Where a gradient leads once it has moved the velocity, which it starts where that is `fresh`.
template <class C>
PYROMANCY_FORMULA Vec<C> accelerate(Vec<C> gradient, Vec<C>& velocity, Vec<C> momentum,
                                    Vec<C> undamped, bool nesterov, bool fresh) {
  velocity = fresh ? gradient : fma(momentum, velocity, undamped * gradient);
  return nesterov ? fma(momentum, velocity, gradient) : velocity;
}

template <class C>
PYROMANCY_FORMULA Vec<C> descend(Vec<C> x, Vec<C> gradient, Vec<C> lr) {
  return fnma(lr, gradient, x);
}

} // namespace pyromancy::PYROMANCY_TARGET
