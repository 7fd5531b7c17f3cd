#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// v - lr g + sqrt(2 lr T) h, with T `first` and h the noise of the step, of the seed `second`.
struct Langevin : StepperDefaults {
  static constexpr bool kDraws = true;

  static bool next(Progress& p, const Stepper& method, const Found&, bool) {
    p.motion.v = {-method.lr, 0, std::sqrt(2 * method.lr * method.first)};
    return true;
  }
};

} // namespace
} // namespace pyromancy
