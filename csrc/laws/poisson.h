#pragma once

// The Poisson law: of every element w (e^mu - z mu), mu being logarithms of rates and w the weight.

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

struct Poisson {
  template <class V>
  static PYROMANCY_FORMULA V pull(V, V mu, V w, V) {
    return -mu * w;
  }
  template <class V>
  static PYROMANCY_FORMULA V push(V z, V mu, V w, V) {
    return (z - exp<Number<V>>(mu)) * w;
  }
  template <class V>
  static PYROMANCY_FORMULA V deviation(V z, V mu, V w, V) {
    return (exp<Number<V>>(mu) - z * mu) * w;
  }
  template <class V>
  static PYROMANCY_FORMULA V moment(V, V, V, V) {
    return V{};
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
