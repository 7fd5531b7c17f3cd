#pragma once

// Student's law with v degrees of freedom: of every element w ((v + 1) / 2 log(1 + r^2) + log s),
// where r = (z - mu) / (sqrt(v) s), the scale s is e^theta, and w the weight. Of r and 1 / r the
// formulas square the one that is below 1.

#include <cmath>

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

struct Student {
  double dof, inverse_root;

  explicit PYROMANCY_FORMULA Student(double dof) : dof(dof), inverse_root(1 / std::sqrt(dof)) {}

  template <class V>
  PYROMANCY_FORMULA V pull(V z, V mu, V p, V w) const {
    using C = Number<V>;
    const V d = subtract(z, mu);
    const Ratio<V> r = ratio(d, p, w);
    const V size = p * C((dof + 1) * inverse_root) * divide(r.least, r.least * r.least + C(1));
    return d < C(0) ? -size : size;
  }
  template <class V>
  PYROMANCY_FORMULA V push(V z, V mu, V p, V w) const {
    return pull(z, mu, p, w);
  }
  template <class V>
  PYROMANCY_FORMULA V deviation(V z, V mu, V p, V w) const {
    using C = Number<V>;
    const Ratio<V> r = ratio(subtract(z, mu), p, w);
    const V high = log_upwards<C>(r.beyond ? r.of : splat<C>(1));
    return w * C(0.5 * (dof + 1)) * (C(2) * high + log1p_unit<C>(r.least * r.least));
  }
  template <class V>
  PYROMANCY_FORMULA V moment(V z, V mu, V p, V w) const {
    using C = Number<V>;
    const Ratio<V> r = ratio(subtract(z, mu), p, w);
    const V square = r.least * r.least, one = splat<C>(1);
    return -w * C(dof + 1) * divide(r.beyond ? one : square, square + C(1));
  }

private:
  template <class V>
  struct Ratio {
    V of;                       // |r|
    V least;                    // of that and its inverse
    decltype(V{} > V{}) beyond; // whether |r| is above 1
  };

  template <class V>
  PYROMANCY_FORMULA Ratio<V> ratio(V d, V p, V w) const {
    using C = Number<V>;
    const V one = splat<C>(1), none = V{};
    const V inverse_scale = w == none ? none : divide(p, w == none ? one : w);
    const V r = (d < none ? -d : d) * (inverse_scale * C(inverse_root));
    const auto beyond = r > one;
    // where the inverse would be subnormal it stays what it is before
    const V most = splat<C>(sizeof(C) == 4 ? C(1e37) : C(1e307));
    return {r, beyond ? divide(one, r > most ? most : beyond ? r : one) : r, beyond};
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
