#pragma once

// The table of laws that go element by element, each a struct of formulas of the state z, the
// prediction mu and the rate p = weight * exp(-theta):
//   pull       what the energy grows by with z
//   push       what it grows by with -mu
//   deviation  the energy without its normalizer
//   moment     what the deviation grows by with theta
// Laws of rows have formulas of their own: categorical.h.

#include "categorical.h"
#include "gaussian.h"
#include "laplace.h"
#include "law.h"

namespace pyromancy::PYROMANCY_TARGET {

// f(formulas), a value of the struct that a law names
template <class F>
PYROMANCY_FORMULA void with_formulas(Law law, F f) {
  switch (law) {
  case Law::laplace:
    return f(Laplace{});
  default:
    return f(Gaussian{});
  }
}

} // namespace pyromancy::PYROMANCY_TARGET
