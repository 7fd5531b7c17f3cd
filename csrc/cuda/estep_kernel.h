#pragma once

#include "../dtype.h"
#include "operands.h"

namespace pyromancy::cuda {

struct EstepArgs {
  DType dtype;
  bool packed;   // 16 bytes at a time, and what is left one by one
  Extent extent; // one row of all elements
  Operand state_at, error_at, feedback_at, velocity_at;
  void* state;
  const void* error;
  const void* feedback; // may be absent
  void* velocity;       // momentum only
  double lr, momentum, dampening;
  bool nesterov;
};

// One gradient step, with momentum where there is a velocity.
void launch_estep(const EstepArgs& args, void* stream);

} // namespace pyromancy::cuda
