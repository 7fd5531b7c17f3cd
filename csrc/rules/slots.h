#pragma once

#include "../arithmetic.h"
#include "rule.h"

namespace pyromancy::PYROMANCY_TARGET {

// What a rule keeps of some elements of a parameter; those that are not there are zero.
template <class C>
struct Slots {
  Vec<C> of[kSlots] = {};
  bool has[kSlots] = {};
};

} // namespace pyromancy::PYROMANCY_TARGET
