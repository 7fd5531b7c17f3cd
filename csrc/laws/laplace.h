#pragma once

// The Laplace law: of every element p |z - mu| - log p, p being the inverse of the scale.

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

struct Laplace {
  // 0 where z is mu, which is a kink.
  template <class V>
  static PYROMANCY_FORMULA V pull(V z, V mu, V p, V = V{}) {
    const V d = subtract(z, mu); // 0 where a state is its prediction, in every bit
    return d > V{} ? p : d < V{} ? -p : d * p;
  }
  template <class V>
  static PYROMANCY_FORMULA V push(V z, V mu, V p, V = V{}) {
    return pull(z, mu, p);
  }
  template <class V>
  static PYROMANCY_FORMULA V deviation(V z, V mu, V p, V = V{}) {
    const V d = subtract(z, mu);
    return (d < V{} ? -d : d) * p;
  }
  template <class V>
  static PYROMANCY_FORMULA V moment(V z, V mu, V p, V = V{}) {
    return -deviation(z, mu, p);
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
