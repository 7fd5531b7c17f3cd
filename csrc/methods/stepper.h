#pragma once

// Steppers: methods that move a sample once a sweep has found its energy and the gradient g at a
// point v, which is of states or of errors: what they share. Functions are of no linker's: every
// instruction set has its own, and one would be taken for all.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../ceil_div.h"

namespace pyromancy {

enum class StepperKind : int64_t {
  quasi_newton,
  nesterov,
  momentum,
  heun,
  langevin,
  sequential,
  adam,
  lbfgs
};
inline constexpr int64_t kStepperKinds = 8;

struct Stepper {
  StepperKind kind;
  bool errors; // what moves
  bool option;
  double lr, first, second, third; // what the kind makes of them
  double factor = 1;               // of the rate, in the step that is judged
  double tol;   // of the decrease, what may be left of it; 0: nothing ends a sample
  bool bounds;  // whether what is left is bounded by the gradient for errors of Gaussian nodes
  bool holds;   // whether constraints do
  bool squares; // whether clamped nodes are Gaussian, too, and not only convex
  bool floored; // whether no energy is below 0
  double eps;   // of the states' dtype

  // Of the kind:
  int64_t sweeps; // that make a step
  bool tries;     // whether the last step is on trial
  bool measures;  // errors in standard deviations
  bool keeps;     // another vector, h
  bool draws;     // noise, into h
  bool looks;     // at what a step's first sweep has found
  bool compares;  // what its second has with that of the first
  bool pends;     // a motion, from run to run
  bool searches;  // for the length of a step, where its first sweep has found its way
  int64_t pairs;  // of ways and changes of the gradient, which that way is made of
};

inline constexpr int64_t kMostPairs = 32;

// The pairs that lbfgs keeps.
inline double pairs_of(const Stepper& method) {
  return method.kind == StepperKind::lbfgs ? method.lr : 0;
}

// Whether every step is one by a gradient at a rate.
inline bool is_rated(const Stepper& method) {
  return method.kind == StepperKind::nesterov ||
         (method.kind == StepperKind::momentum && method.first == 0);
}

// What a sweep has found, s being what the last motion left and y = g - h. gg is that of errors in
// standard deviations, `square` of those as they are, nodes counting by their rates over lr. Where
// constraints hold states gg, gs and square are those of what would lead where the step does
// without, and yy is what they add to the energy.
struct Found {
  double energy, gg, gs, gv, sy, yy, square;
  bool bounded; // whether it has found the next two: products with the gradient for errors
  double errors_gg, errors_gv;
};

// How a sample moves: s' = s.g g + s.s s + s.h h, v' = v + v.g g + v.s s + v.h h, and h' = g where
// it keeps that. Where constraints hold a state, what a step at the rate makes of v takes the place
// of v - rate g.
struct Motion {
  struct Weights {
    double g, s, h;
  } s, v;
  double keeps, rate;
};

inline constexpr Motion kRest{{0, 1, 0}, {0, 0, 0}, 0, 0};

inline constexpr int64_t kRarely = 5; // steps on states from bound to bound, which takes a sweep
inline constexpr int64_t kWindow = 4, kHistory = 32; // steps at least, and energies that are kept
inline constexpr double kRounding = 1e-4; // a share of a square, in which differences are lost

// What is known of a sample between its sweeps.
struct Progress {
  Motion motion;
  double t; // of Nesterov's momentum

  double first, energy, least; // at the start, at the last point, and of all
  double hh, ss;               // products
  double length;               // of a step: over the gradient's, or in time
  double pending;              // what another run begins with
  double bound;                // what the energy is never below
  double slope, scale;         // along a way that is searched, and of the gradient in that
  double history[kHistory];    // least energies, at multiples of `apart`
  double longest;              // of steps' gradients but the first, where constraints hold them

  int64_t taken, before, looked; // steps: all, those of runs before, and those of a tolerance
  int64_t tried;                 // lengths of a step
  bool done, converged;
  bool fresh;   // nothing has been found yet
  bool paired;  // the last step tells of a curvature
  bool settled; // the length of the step is found
  bool certain; // every error that moves has a weight
};

inline constexpr int64_t kProgress = 58; // numbers that it takes
static_assert(sizeof(Progress) <= kProgress * sizeof(double));

namespace {

// What a kind of method is, unless it says otherwise.
struct StepperDefaults {
  static constexpr int64_t kSweeps = 1;
  static constexpr bool kTries = false, kMeasures = false, kKeeps = false, kDraws = false,
                        kSearches = false;

  static bool looks(const Stepper&) {
    return false;
  }
  static bool compares(const Stepper&) {
    return false;
  }
  // Whether energies swing, so that for a while no gain is no end.
  static bool swings(const Stepper&) {
    return false;
  }
  static void begin(Progress&, const Stepper&) {}
  // The motion that another run begins with, where runs do.
  static constexpr bool kPends = false;
  static void resume(Progress&) {}
  // The motion after a step's first sweep; returns whether the point that it looked at is taken.
  // static bool next(Progress&, const Stepper&, const Found&, bool last);

  // The motion after its second, whose difference from the first is as large as this.
  static void correct(Progress&, const Stepper&, double) {}
};

// The energy that none is below in a linear network: of the dual of its quadratic problem, at the
// best multiple of the errors of clamped nodes. Where these feed hardly anything back, both parts
// of that are rounding, and those errors as they are will do, as where those nodes are only convex:
// no curvature then is below that of the errors that move, which is 1.
inline double bound(const Found& f, bool squares) {
  const double gg = f.errors_gg, gv = f.errors_gv;
  if (!squares)
    return f.energy - gg / 2;
  const double top = 2 * f.energy * gg - gv * gv, whole = 2 * f.energy - 2 * gv + gg;
  return f.energy - (whole > kRounding * gg ? std::min(gg, top / whole) : gg) / 2;
}

} // namespace
} // namespace pyromancy
