#pragma once

// The categorical law: of a sample p z . (L - mu), z being a distribution, mu its logits and L the
// logarithm of sum(e^mu). Nothing pulls at z, which is clamped.

#include "../arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

// Of an element, in terms of what is the same for all of its sample: x is mu less the greatest
// logit, so that no e^x overflows, `share` is sum(z) / sum(e^x) and `log_total` log(sum(e^x)).
struct Categorical {
  // What the energy grows by with -mu: 0 times softmax(mu) where it is 0.
  template <class V>
  static PYROMANCY_FORMULA V push(V z, V exp_x, V share, V p) {
    return p * fnma(exp_x, share, z);
  }
  template <class V>
  static PYROMANCY_FORMULA V deviation(V z, V x, V log_total, V p) {
    return p * (z * (log_total - x));
  }
};

} // namespace pyromancy::PYROMANCY_TARGET
