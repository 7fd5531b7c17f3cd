#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// The BFGS method that knows the last `pairs` changes of the gradient, and halves its steps until
// the energy falls enough. Errors are measured in standard deviations. h is the gradient, and x the
// point, of the step before, from which v is the way s on; the way of a step is -H g, which the
// kernel makes of the pairs. python/pyromancy/methods/lbfgs.py is the other half.
struct Lbfgs : StepperDefaults {
  static constexpr bool kMeasures = true, kKeeps = true, kSearches = true;
  static constexpr double kFirst = 0.2; // of the gradient, where no curvature is known

  static bool looks(const Stepper&) {
    return true;
  }
  static void begin(Progress& p, const Stepper&) {
    p.scale = kFirst;
  }
  static bool next(Progress& p, const Stepper& method, const Found& f, bool) {
    p.energy = f.energy;
    p.paired = !p.fresh && f.sy > method.eps * f.yy && f.sy > 0;
    if (p.paired)
      p.scale = f.sy / f.yy;
    p.ss = f.sy;
    return true;
  }
  // The way is found, along which the energy's slope is this.
  static void set_out(Progress& p, double slope) {
    p.slope = slope;
    p.length = 1;
    p.tried = 0;
    p.settled = false;
    p.motion.v = {1, p.length, 0};
  }
  // Where a step of some length has led there is this energy. Returns whether no length will do, so
  // that the sample goes back, and begins anew.
  static bool search(Progress& p, const Stepper& method, double energy) {
    constexpr double kArmijo = 1e-4, kRounding = 10;
    constexpr int64_t kHalvings = 20;
    if (p.done || p.settled)
      return false;
    const double bound =
        p.energy + kArmijo * p.length * p.slope + kRounding * method.eps * std::abs(p.energy);
    p.settled = energy <= bound || p.tried == kHalvings;
    const bool fails = !p.settled && ++p.tried == kHalvings;
    if (!p.settled)
      p.length = fails ? 0 : p.length / 2;
    if (fails)
      p.scale = kFirst;
    p.motion.v.s = p.length;
    return fails;
  }
};

} // namespace
} // namespace pyromancy
