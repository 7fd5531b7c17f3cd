#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// At a rate: v' = x' + blend (x' - x), where x' = v - lr g and s is v - x. `first` is the blend,
// unless with the option that is (t - 1) / t', t anew where a step leads upwards.
// python/pyromancy/methods/nesterov.py is the other half.
struct Nesterov : StepperDefaults {
  static bool looks(const Stepper& method) {
    return method.option;
  }
  static bool swings(const Stepper& method) {
    return method.option || method.first > 0;
  }
  static void begin(Progress& p, const Stepper&) {
    p.t = 1;
  }
  static bool next(Progress& p, const Stepper& method, const Found& f, bool last) {
    const double lr = method.factor * method.lr;
    double blend = method.first;
    if (method.option) {
      if (f.gs > lr * f.square) // g . (x' - x) > 0
        p.t = 1;
      const double next = (1 + std::sqrt(1 + 4 * p.t * p.t)) / 2;
      blend = (p.t - 1) / next;
      p.t = next;
    }
    p.pending = last ? blend : 0;
    if (last) { // at x', and what momentum adds waits for another run
      p.motion.s = {-lr, 1, 0};
      p.motion.v = {-lr, 0, 0};
    } else {
      p.motion.s = {-blend * lr, blend, 0};
      p.motion.v = {-(1 + blend) * lr, blend, 0};
    }
    p.motion.rate = lr;
    return true;
  }
  static constexpr bool kPends = true;
  static void resume(Progress& p) {
    p.motion.s = p.motion.v = {0, p.pending, 0};
  }
};

} // namespace
} // namespace pyromancy
