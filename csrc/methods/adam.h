#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// torch.optim.Adam: s is the mean of gradients, h that of their squares; `first` and `second` are
// their decays, `third` what is added to the latter's root. A motion is not linear here: v.g is
// the rate over the bias of the mean, 0 where the sample rests, and v.h the root of the other bias.
struct AdamStepper : StepperDefaults {
  static constexpr bool kKeeps = true;

  static bool swings(const Stepper&) {
    return true;
  }
  static bool next(Progress& p, const Stepper& method, const Found&, bool) {
    const double taken = static_cast<double>(p.taken);
    p.motion.v.g = method.lr / (1 - std::pow(method.first, taken));
    p.motion.v.h = std::sqrt(1 - std::pow(method.second, taken));
    return true;
  }
};

} // namespace
} // namespace pyromancy
