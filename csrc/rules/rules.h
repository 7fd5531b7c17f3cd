#pragma once

// The table of rules: each is `apply` of a struct, to an element and what its slots from the first
// one to the end hold of it.

#include "adam.h"
#include "rmsprop.h"
#include "sgd.h"

namespace pyromancy::PYROMANCY_TARGET {

// f(rule), a value of the struct that a kind names; not for the gradient, which moves nothing
template <class F>
PYROMANCY_FORMULA void with_rule(RuleKind kind, F f) {
  switch (kind) {
  case RuleKind::gradient:
    return;
  case RuleKind::sgd:
    return f(Sgd{});
  case RuleKind::adam:
    return f(Adam{});
  case RuleKind::rmsprop:
    return f(RmsProp{});
  }
}

} // namespace pyromancy::PYROMANCY_TARGET
