#pragma once

// All steppers, and what is decided of a sample after each of its sweeps.

#include "adam.h"
#include "heun.h"
#include "langevin.h"
#include "lbfgs.h"
#include "momentum.h"
#include "nesterov.h"
#include "quasi_newton.h"
#include "sequential.h"

namespace pyromancy {
namespace {

// f(method) for the formulas of a kind
template <class F>
inline auto with_stepper(StepperKind kind, F f) {
  switch (kind) {
  case StepperKind::quasi_newton:
    return f(QuasiNewton{});
  case StepperKind::nesterov:
    return f(Nesterov{});
  case StepperKind::momentum:
    return f(Momentum{});
  case StepperKind::heun:
    return f(Heun{});
  case StepperKind::sequential:
    return f(Sequential{});
  case StepperKind::adam:
    return f(AdamStepper{});
  case StepperKind::langevin:
    return f(Langevin{});
  case StepperKind::lbfgs:
    return f(Lbfgs{});
  }
  __builtin_unreachable();
}

// Sets what follows from a method's kind.
inline void complete(Stepper& method) {
  with_stepper(method.kind, [&](auto of) {
    method.sweeps = of.kSweeps;
    method.tries = of.kTries;
    method.measures = of.kMeasures;
    method.keeps = of.kKeeps;
    method.draws = of.kDraws;
    method.looks = of.looks(method) || method.tol > 0;
    method.compares = of.compares(method);
    method.pends = of.kPends;
    method.searches = of.kSearches;
    method.pairs = static_cast<int64_t>(pairs_of(method));
  });
}

inline Progress begin(const Stepper& method) {
  Progress p{};
  p.certain = p.fresh = true;
  with_stepper(method.kind, [&](auto of) { of.begin(p, method); });
  return p;
}

// Another run, of what one before has left. What a tolerance has stopped begins anew, but for its
// energies.
inline void resume(Progress& p, const Stepper& method) {
  if (p.converged) {
    p.taken = 0;
    p.pending = 0;
    p.fresh = true;
    with_stepper(method.kind, [&](auto of) { of.begin(p, method); });
  }
  p.motion = {};
  with_stepper(method.kind, [&](auto of) { of.resume(p); });
  p.before = p.taken;
  p.certain = true;
  p.done = p.converged = false;
}

// Steps between energies that are kept, of so many steps.
inline int64_t apart(int64_t steps) {
  int64_t result = 1;
  while (steps + 1 >= 2 * kHistory * result)
    result *= 2;
  return result;
}

// Keeps the least energy; returns what it was about half of the steps before, or where there are
// too few infinity. python/pyromancy/methods/stop.py is the other half.
inline double remember(Progress& p, int64_t step) {
  const int64_t apart = pyromancy::apart(step);
  const auto at = [&](int64_t step) -> double& { return p.history[step / apart % kHistory]; };
  if (step > 0 && pyromancy::apart(step - 1) < apart) {
    double kept[kHistory];
    for (int64_t i = 0; i < kHistory; ++i)
      kept[i] = p.history[2 * i % kHistory];
    std::copy(kept, kept + kHistory, p.history);
  }
  if (step % apart == 0)
    at(step) = p.least;
  const int64_t window = std::max(ceil_div(step, int64_t{2}), kWindow);
  return window > step ? INFINITY : at(ceil_div(step - window, apart) * apart);
}

// After the first sweep of a step, which is the last one or not.
inline void judge(Progress& p, const Stepper& method, const Found& f, bool last) {
  p.motion = p.done ? kRest : Motion{};
  if (p.done)
    return;
  ++p.taken;
  if (p.fresh && (!std::isfinite(f.energy) || (method.measures && !std::isfinite(f.gg)))) {
    p.done = true;
    p.motion = kRest;
    return;
  }
  const bool holds = method.holds && method.tol > 0;
  bool ends = false; // as constraints have brought it there, which it does after the step
  if (holds && method.factor * method.lr > 0) {
    const double led = std::sqrt(f.gg);
    if (p.looked > 0)
      p.longest = std::max(p.longest, led);
    // at first a step may be long for a start that is out of range
    ends = p.looked > 0 ? led <= method.tol * p.longest : led == 0;
  }
  if (!method.tries)
    p.energy = holds ? f.energy + f.yy : f.energy;
  const bool taken =
      with_stepper(method.kind, [&](auto of) { return of.next(p, method, f, last || ends); });
  p.fresh = false;
  const bool bounds = method.bounds && p.certain;
  if (taken && bounds && f.bounded)
    p.bound = bound(f, method.squares);
  if (method.tol == 0)
    return;
  const int64_t k = p.looked++;
  if (k == 0)
    p.first = p.least = p.energy;
  p.least = std::min(p.least, p.energy);
  const double before = remember(p, k), enough = method.tol * (p.first - p.least);
  const bool looks = f.bounded || (!method.bounds && !holds);
  const bool bounded = bounds ? (method.errors || (taken && f.bounded)) &&
                                    p.energy - p.bound <= method.tol * (p.first - p.energy)
                              : taken && looks && f.gg == 0;
  const bool swings = with_stepper(method.kind, [&](auto of) { return of.swings(method); });
  const bool idle =
      !swings && enough > 0 && p.energy - p.least <= enough && before - p.least <= enough;
  if (!bounded && !idle && !ends)
    return;
  p.done = p.converged = true;
  if (holds)
    return;
  p.motion = kRest;
  if (!taken)
    p.motion.v.s = -1;
}

// After the second.
inline void correct(Progress& p, const Stepper& method, double difference) {
  p.motion = p.done ? kRest : Motion{};
  if (!p.done)
    with_stepper(method.kind, [&](auto of) { of.correct(p, method, difference); });
}

// After the last sweep of a method that tries: whether the point that it leads to, of this energy,
// is one to end at, which then is done; else it will be the one before.
inline void accept(Progress& p, double energy) {
  p.motion = kRest; // s may be on trial again
  if (p.done)
    return;
  p.done = energy <= p.energy;
  p.pending = p.done ? 0 : 1;
  if (!p.done)
    p.motion.v.s = -1;
}

} // namespace
} // namespace pyromancy
