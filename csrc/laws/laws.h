#pragma once

// The table of laws that go element by element, each a struct of formulas of the state z, the
// prediction mu, the rate p = weight * exp(-theta) and the weight:
//   pull       what the energy grows by with z
//   push       what it grows by with -mu
//   deviation  the energy without its normalizer
//   moment     what the deviation grows by with theta
// Laws of rows have formulas of their own: categorical.h.

#include "bernoulli.h"
#include "categorical.h"
#include "gaussian.h"
#include "huber.h"
#include "laplace.h"
#include "law.h"
#include "poisson.h"
#include "student.h"

namespace pyromancy::PYROMANCY_TARGET {

// f(formulas), a value of the struct that a law names, with its parameter
template <class F>
PYROMANCY_FORMULA void with_formulas(Law law, double parameter, F f) {
  switch (law) {
  case Law::laplace:
    return f(Laplace{});
  case Law::bernoulli:
    return f(Bernoulli{});
  case Law::poisson:
    return f(Poisson{});
  case Law::student:
    return f(Student(parameter));
  case Law::huber:
    return f(Huber{parameter});
  default:
    return f(Gaussian{});
  }
}

} // namespace pyromancy::PYROMANCY_TARGET
