#pragma once

// The Bernoulli law: of every element w (log(1 + e^mu) - z mu), mu being logits and w the weight:
// the cross-entropy of z in [0, 1] and sigmoid(mu).

#include "../activate.h"

namespace pyromancy::PYROMANCY_TARGET {

struct Bernoulli {
  template <class V>
  static PYROMANCY_FORMULA V pull(V, V mu, V w, V) {
    return -mu * w;
  }
  template <class V>
  static PYROMANCY_FORMULA V push(V z, V mu, V w, V) {
    return (z - sigmoid<Number<V>>(mu)) * w;
  }
  // Neither exponential is above 1.
  template <class V>
  static PYROMANCY_FORMULA V deviation(V z, V mu, V w, V) {
    using C = Number<V>;
    const V low = mu < C(0) ? mu : -mu, high = mu < C(0) ? splat<C>(0) : mu;
    return (high - z * mu + log1p_unit<C>(exp<C>(low))) * w;
  }
  template <class V>
  static PYROMANCY_FORMULA V moment(V, V, V, V) {
    return V{};
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
