#pragma once

// What the operations of expressions are made of, beside functions.

#include "../activate.h"
#include "expression.h"

namespace pyromancy::PYROMANCY_TARGET {

template <class V>
PYROMANCY_FORMULA V greatest(V a, V b) {
  return a > b ? a : a == a ? b : a; // NaN stays
}

template <class C>
PYROMANCY_FORMULA Vec<C> logcosh(Vec<C> a) {
  constexpr double ln2 = 0.69314718055994530942;
  const Vec<C> m = a < C(0) ? -a : a;
  return m + log1p_unit<C>(exp<C>(C(-2) * m)) - C(ln2);
}

template <class C>
PYROMANCY_FORMULA Vec<C> logaddexp(Vec<C> a, Vec<C> b) {
  const Vec<C> zero = splat(C(0)), d = a == b ? zero : a - b; // infinities may be the same
  return greatest(a, b) + log1p_unit<C>(exp<C>(d < zero ? d : -d));
}

} // namespace pyromancy::PYROMANCY_TARGET
