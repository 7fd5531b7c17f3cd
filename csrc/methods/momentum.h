#pragma once

#include "stepper.h"

namespace pyromancy {
namespace {

// torch.optim.SGD: s is the velocity, which the first gradient starts. `first` is the momentum,
// `second` the dampening, and the option Nesterov's form.
struct Momentum : StepperDefaults {
  static bool swings(const Stepper& method) {
    return method.first > 0;
  }
  static bool next(Progress& p, const Stepper& method, const Found&, bool) {
    const double momentum = method.first, lr = method.factor * method.lr;
    const Motion::Weights s =
        p.fresh ? Motion::Weights{1, 0, 0} : Motion::Weights{1 - method.second, momentum, 0};
    const Motion::Weights along =
        method.option ? Motion::Weights{1 + momentum * s.g, momentum * s.s, 0} : s;
    p.motion.s = s;
    p.motion.v = {-lr * along.g, -lr * along.s, 0};
    p.motion.rate = lr;
    return true;
  }
};

} // namespace
} // namespace pyromancy
