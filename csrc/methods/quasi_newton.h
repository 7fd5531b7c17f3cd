#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// No rate: a step of the BFGS method that knows the last change of the gradient alone. Errors are
// measured in standard deviations: gradients are divided by precisions, and products of them, or of
// ways, multiplied. s is the way to v from the point before it, and h the gradient there.
// python/pyromancy/methods/accelerated.py is the other half, and says why.
struct QuasiNewton : StepperDefaults {
  static constexpr bool kTries = true, kMeasures = true, kKeeps = true;

  static bool looks(const Stepper&) {
    return true;
  }
  // The step that was on trial at the end of the run before is so again.
  static constexpr bool kPends = true;
  static void resume(Progress& p) {
    p.motion.s = {0, 1, 0};
    p.motion.v = {0, p.pending, 0};
    p.pending = 0;
  }
  static bool next(Progress& p, const Stepper& method, const Found& found, bool) {
    if (found.gg == 0 && (p.fresh || found.energy <= p.energy)) { // nowhere to go
      p.energy = found.energy;
      return true;
    }
    constexpr double kFirst = 0.2, kShorter = 0.5, kLonger = 100, kNoise = 1e-12, kLost = 1e-10,
                     tiny = 1e-300;
    const bool fresh = p.fresh;
    const bool finite = std::isfinite(found.energy) && std::isfinite(found.gg);
    const Found f =
        finite ? found : Found{found.energy, p.hh, 0, 0, 0, 0, 0, false, 0, 0}; // as if g were h
    const bool takes = fresh || (finite && f.energy <= p.energy);
    const double least = std::min(1e-2 * p.ss, 1e-3 * std::sqrt(p.ss * f.yy));
    const bool curved =
        !fresh && finite && f.yy > std::max(kNoise * f.gg, tiny) && f.sy > std::max(least, tiny);
    // g and h at the point that is kept
    const double gy = (f.gg - p.hh + f.yy) / 2, gh = f.gg - gy;
    if (fresh)
      p.length = method.errors && method.floored
                     ? 2 * f.energy / std::max(2 * f.energy + f.gg, tiny)
                     : kFirst;
    else if (curved)
      p.length = takes ? f.sy / f.yy : std::max(f.sy / f.yy, p.length);
    else if (!takes)
      p.length *= kShorter;
    const double sg = takes ? f.gs : f.gs - f.sy, yg = takes ? gy : gy - f.yy;
    const double rho = curved ? 1 / f.sy : 0, a = p.length;
    const double of_s = rho * (sg + a * (rho * f.yy * sg - yg)), of_y = a * rho * sg;
    // -a k - of_s s + of_y (g - h), with k the gradient that is kept
    Motion::Weights d{of_y - (takes ? a : 0), -of_s, -of_y - (takes ? 0 : a)};
    const double sh = f.gs - f.sy;
    const double parts = d.g * d.g * f.gg + d.s * d.s * p.ss + d.h * d.h * p.hh;
    double ss = parts + 2 * (d.g * d.s * f.gs + d.g * d.h * gh + d.s * d.h * sh);
    if (!(ss > kLost * parts)) { // nobody knows how far that would go: along the gradient, then
      d = {takes ? -a : 0, 0, takes ? 0 : -a};
      ss = a * a * (takes ? f.gg : p.hh);
    }
    // After a failure, nearer; else no leap, in which a sum of v and s would lose v.
    const double most =
        takes ? kLonger * kLonger * std::max(p.ss, a * a * f.gg) : kShorter * kShorter * p.ss;
    if (ss > most) {
      const double shorter = std::sqrt(most / ss);
      d = {shorter * d.g, shorter * d.s, shorter * d.h};
      ss = most;
    }
    if (!std::isfinite(ss)) // lost in rounding: it is at its end
      d = {}, ss = 0;
    p.motion.s = p.motion.v = d;
    p.ss = ss;
    if (!takes) {
      p.motion.v.s -= 1;
      return false;
    }
    p.motion.keeps = 1;
    p.energy = f.energy;
    p.hh = f.gg;
    return true;
  }
};

} // namespace
} // namespace pyromancy
