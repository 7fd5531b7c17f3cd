#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// v - lr g for every other node from the first on, and in a second sweep for those between.
struct Sequential : StepperDefaults {
  static constexpr int64_t kSweeps = 2;

  static bool next(Progress& p, const Stepper& method, const Found&, bool) {
    p.motion.v = {-method.lr, 0, 0};
    return true;
  }
  static void correct(Progress& p, const Stepper& method, double) {
    p.motion.v = {-method.lr, 0, 0};
  }
};

} // namespace
} // namespace pyromancy
