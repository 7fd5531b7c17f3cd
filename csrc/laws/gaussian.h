#pragma once

// The Gaussian law: of every element 1/2 [p d^2 - log p], with d = z - mu and the precision
// p = exp(-logvar). Where a matrix is the precision, its product with d stands for the pull.

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET::gaussian {

// Zero where a state is its prediction, to which a fused multiply-subtract would not round.
template <class V>
PYROMANCY_FORMULA V residual(V z, V mu) {
  return subtract(z, mu);
}

// What the energy grows by with z, and with -mu: one and the same here.
template <class V>
PYROMANCY_FORMULA V pull(V residual, V precision) {
  return residual * precision;
}
template <class V>
PYROMANCY_FORMULA V push(V residual, V precision) {
  return pull(residual, precision);
}

// Twice the energy without log p, and the same where the pull is at hand.
template <class V>
PYROMANCY_FORMULA V twice_energy(V residual, V precision) {
  return residual * residual * precision;
}
template <class V>
PYROMANCY_FORMULA V twice_energy_by_pull(V residual, V pull) {
  return residual * pull;
}

// Twice what `weight` energies grow by with logvar, the pull being that of all of them.
template <class V>
PYROMANCY_FORMULA V twice_moment(V weight, V residual, V pull) {
  return weight - residual * pull;
}

} // namespace pyromancy::PYROMANCY_TARGET::gaussian

namespace pyromancy::PYROMANCY_TARGET {

// The same as a row of laws.h.
struct Gaussian {
  template <class V>
  static PYROMANCY_FORMULA V pull(V z, V mu, V p, V = V{}) {
    return gaussian::pull(gaussian::residual(z, mu), p);
  }
  template <class V>
  static PYROMANCY_FORMULA V push(V z, V mu, V p, V = V{}) {
    return gaussian::push(gaussian::residual(z, mu), p);
  }
  template <class V>
  static PYROMANCY_FORMULA V deviation(V z, V mu, V p, V = V{}) {
    return gaussian::twice_energy_by_pull(gaussian::residual(z, mu), pull(z, mu, p)) * half<V>();
  }
  template <class V>
  static PYROMANCY_FORMULA V moment(V z, V mu, V p, V = V{}) {
    return -deviation(z, mu, p);
  }

private:
  template <class V>
  static PYROMANCY_FORMULA V half() {
    return V{} + 0.5f;
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
