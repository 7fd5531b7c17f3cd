#pragma once

// Accelerated descent of one sample: what is decided after each of its sweeps, which have found the
// energy and its gradient g at a point v. Without a rate errors are measured in standard
// deviations: gradients are divided by precisions, and products of them, or of ways, multiplied.
// python/pyromancy/methods/accelerated.py is the other half, and says why.
// Functions are static: every instruction set has its own, and a linker would take any one for all.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../ceil_div.h"

namespace pyromancy {

struct Accelerated {
  double lr;       // 0: none
  double momentum; // where it does not restart
  bool restarts;
  double tol;   // of the decrease, what may be left of it; 0: nothing ends a sample
  bool errors;  // what moves
  bool bounds;  // whether what is left is bounded by the gradient: of errors of Gaussian nodes
  bool squares; // whether clamped nodes are Gaussian, too, and not only convex
};

// What a sweep has found, s being the way to v from the point x before it and y = g - h the change
// of the gradient along it. gg is that of errors in standard deviations, `square` of those as they
// are.
struct Found {
  double energy, gg, gs, gv, sy, yy, square;
};

// How a sample moves: s' = s.g g + s.s s + s.h h, v' = v + v.g g + v.s s + v.h h, and h' = g where
// it keeps that.
struct Motion {
  struct Weights {
    double g, s, h;
  } s, v;
  double keeps;
};

inline constexpr int64_t kWindow = 4, kLongestWindow = 32; // sweeps
inline constexpr double kRounding = 1e-4; // a share of a square, in which differences are lost

// What is known of a sample between its sweeps.
struct Progress {
  Motion motion;
  double t; // of Nesterov's momentum

  double first, energy, least; // at the start, at the point x, and of all
  double hh, ss;               // products
  double length;               // of a step, over the gradient's
  double bound;                // what the energy is never below
  double history[kLongestWindow];

  int64_t taken;
  bool done, converged;
  bool certain; // every error that moves has a weight
};

static inline Progress begin() {
  Progress p{};
  p.t = 1;
  p.certain = true;
  return p;
}

// With a rate: v' = x' + blend (x' - x), where x' = v - lr g and s is v - x.
static inline void follow(Progress& p, const Accelerated& method, const Found& f, bool last) {
  double blend = method.momentum;
  if (method.restarts) {
    if (f.gs > method.lr * f.square) // g . (x' - x) > 0
      p.t = 1;
    const double next = (1 + std::sqrt(1 + 4 * p.t * p.t)) / 2;
    blend = (p.t - 1) / next;
    p.t = next;
  }
  if (last)
    blend = 0;
  p.motion.s = {-blend * method.lr, blend, 0};
  p.motion.v = {-(1 + blend) * method.lr, blend, 0};
  p.energy = f.energy;
}

// Without one: a step of the BFGS method that knows the last change of the gradient alone.
static inline bool find(Progress& p, const Accelerated& method, const Found& found) {
  constexpr double kFirst = 0.2, kShorter = 0.5, kLonger = 100, tiny = 1e-300;
  const bool fresh = p.taken == 1;
  const bool finite = std::isfinite(found.energy) && std::isfinite(found.gg);
  const Found f = finite ? found : Found{found.energy, p.hh, 0, 0, 0, 0, 0}; // as if g were h
  const bool takes = fresh || (finite && f.energy <= p.energy);
  const double least = std::min(1e-2 * p.ss, 1e-3 * std::sqrt(p.ss * f.yy));
  const bool curved = !fresh && finite && f.yy > tiny && f.sy > std::max(least, tiny);
  // g and h at the point that is kept
  const double gy = (f.gg - p.hh + f.yy) / 2, gh = f.gg - gy;
  if (fresh)
    p.length = method.errors ? 2 * f.energy / std::max(2 * f.energy + f.gg, tiny) : kFirst;
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
  double ss = std::max(0.0, d.g * d.g * f.gg + d.s * d.s * p.ss + d.h * d.h * p.hh +
                                2 * (d.g * d.s * f.gs + d.g * d.h * gh + d.s * d.h * sh));
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

// The energy that none is below in a linear network: of the dual of its quadratic problem, at the
// best multiple of the errors of clamped nodes. Where these feed hardly anything back, both parts
// of that are rounding, and those errors as they are will do, as where those nodes are only convex:
// no curvature then is below that of the errors that move, which is 1.
static inline double bound(const Found& f, bool squares) {
  if (!squares)
    return f.energy - f.gg / 2;
  const double top = 2 * f.energy * f.gg - f.gv * f.gv;
  const double whole = 2 * f.energy - 2 * f.gv + f.gg;
  return f.energy - (whole > kRounding * f.gg ? std::min(f.gg, top / whole) : f.gg) / 2;
}

static inline void judge(Progress& p, const Accelerated& method, const Found& f, bool last) {
  p.motion = {};
  if (p.done)
    return;
  const int64_t k = p.taken++;
  if (k == 0) {
    p.first = p.least = f.energy;
    if (!std::isfinite(f.energy) || (method.lr == 0 && !std::isfinite(f.gg))) {
      p.done = true;
      return;
    }
  }
  bool taken = true;
  if (f.gg == 0 && method.lr == 0 && (k == 0 || f.energy <= p.energy)) // nowhere to go
    p.energy = f.energy;
  else if (method.lr > 0)
    follow(p, method, f, last);
  else
    taken = find(p, method, f);
  const bool bounds = method.bounds && p.certain;
  if (taken && bounds)
    p.bound = bound(f, method.squares);
  p.least = std::min(p.least, p.energy);
  p.history[k % kLongestWindow] = p.least;
  if (method.tol == 0)
    return;
  const double enough = method.tol * (p.first - p.least);
  const int64_t window = std::clamp(ceil_div(k, int64_t{2}), kWindow, kLongestWindow - 1);
  const bool bounded =
      bounds ? p.energy - p.bound <= method.tol * (p.first - p.energy) : taken && f.gg == 0;
  // With momentum energies swing: for a while no gain is no end.
  const bool swings = method.lr > 0 && (method.restarts || method.momentum > 0);
  const bool idle = !swings && k >= window && enough > 0 && p.energy - p.least <= enough &&
                    p.history[(k - window) % kLongestWindow] - p.least <= enough;
  if (!bounded && !idle)
    return;
  p.done = p.converged = true;
  p.motion = {};
  if (!taken)
    p.motion.v.s = -1;
}

// After the last sweep: whether the point that it leads to, of this energy, is one to end at, which
// then is done; else it will be the one before.
static inline void accept(Progress& p, const Accelerated& method, double energy) {
  p.motion = {};
  p.done = p.done || method.lr > 0 || energy <= p.energy;
  if (!p.done)
    p.motion.v.s = -1;
}

} // namespace pyromancy
