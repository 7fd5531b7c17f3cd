#pragma once

// The law of Huber's loss: of every element w d^2 / 2 of the distance d = z - mu, and beyond a
// bound on that, on either side, its tangent: w being the weight.

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

struct Huber {
  double bound;

  template <class V>
  PYROMANCY_FORMULA V pull(V z, V mu, V w, V) const {
    return bounded(subtract(z, mu)) * w;
  }
  template <class V>
  PYROMANCY_FORMULA V push(V z, V mu, V w, V) const {
    return bounded(subtract(z, mu)) * w;
  }
  template <class V>
  PYROMANCY_FORMULA V deviation(V z, V mu, V w, V) const {
    const V d = subtract(z, mu), c = bounded(d);
    return c * (d - Number<V>(0.5) * c) * w;
  }
  template <class V>
  static PYROMANCY_FORMULA V moment(V, V, V, V) {
    return V{};
  }

private:
  template <class V>
  PYROMANCY_FORMULA V bounded(V d) const {
    const V most = splat(static_cast<Number<V>>(bound));
    return d > most ? most : d < -most ? -most : d;
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
