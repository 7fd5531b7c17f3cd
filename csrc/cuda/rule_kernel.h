#pragma once

// A parameter along its gradient, by a rule of csrc/rules; float32 and float64, everything
// contiguous.

#include "../dtype.h"
#include "../rules/rule.h"

namespace pyromancy::cuda {

struct RuleArgs {
  DType dtype;
  int64_t size;
  LearnStep step;
  const LearnStep* counted; // or this one's factors, in the device's memory
  const void* gradient;
  void* parameter;
  void* slots[kSlots]; // but for the count of steps; null where the rule does without
};
void launch_rule(const RuleArgs& args, void* stream);

// Counts a step in the device's memory, and makes of a rule what applies at it.
struct CountArgs {
  DType dtype; // of the count
  void* count;
  Rule rule;
  LearnStep* counted;
};
void launch_count(const CountArgs& args, void* stream);

} // namespace pyromancy::cuda
