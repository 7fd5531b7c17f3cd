#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// x' = x - h g(x), then x - h/2 (g(x) + g(x')). With the option h is every sample's own, adapted to
// the tolerances `first`, relative, and `second`, absolute. s is the way to x' from x, and h, the
// vector, the gradient at x. python/pyromancy/methods/heun.py is the other half.
struct Heun : StepperDefaults {
  static constexpr int64_t kSweeps = 2;
  static constexpr bool kKeeps = true;

  static bool compares(const Stepper& method) {
    return method.option;
  }
  static void begin(Progress& p, const Stepper& method) {
    p.length = method.lr;
  }
  static bool next(Progress& p, const Stepper&, const Found&, bool) {
    p.motion.s = p.motion.v = {-p.length, 0, 0};
    p.motion.keeps = 1;
    return true;
  }
  // The difference is a mean of squares of what `share` gives.
  static void correct(Progress& p, const Stepper& method, double difference) {
    constexpr double kSafety = 0.9, kLeast = 0.2, kMost = 5;
    const double half = p.length / 2;
    p.motion.v = {-half, 0, half};
    if (!method.option)
      return;
    const double error = std::isfinite(difference) ? std::sqrt(difference) : INFINITY;
    if (error > 1)
      p.motion.v = {0, -1, 0};
    p.length *= std::clamp(kSafety / std::sqrt(error), kLeast, kMost);
  }

  // An element's part of the difference, at x' after a step of this length.
  template <class V>
  static V share(V v, V s, V g, V h, V length, V relative, V absolute) {
    const auto size = [](V x) { return x < 0 ? -x : x; };
    const V change = length * (g - h) / 2, from = size(v - s), to = size(v - change);
    const V of = change / (absolute + relative * (from > to ? from : to));
    return of * of;
  }
};

} // namespace
} // namespace pyromancy
