#pragma once

#include "../layout.h"
#include "isa.h"

namespace pyromancy {

// Operands of the E-step kernels in their layout, which is one row of all elements.
enum EstepOperand : int { kState, kError, kFeedback, kVelocity };

struct EstepArgs {
  Layout layout;
  void* state;
  const void* error;
  const void* feedback; // may be absent
  void* velocity;       // momentum only
  double lr, momentum, dampening;
  bool nesterov;
};

// One gradient step at positions [begin, end), with momentum where there is a velocity.
using EstepKernel = void (*)(const EstepArgs& args, int64_t begin, int64_t end);

PYROMANCY_DECLARE_KERNELS(EstepKernel, estep_kernels)

} // namespace pyromancy
