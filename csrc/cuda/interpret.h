#pragma once

// Runs the programs of laws of one's own: of an element, by one thread, which all of a warp follow.

#include "../laws/operations.h"

namespace pyromancy::cuda {

template <class C>
struct OfLaw {
  C pull, push, deviation, moment;
};

template <class C>
struct Values {
  const Expression& of;
  C given[3];
  C made[kMostInstructions]; // not set before it is needed

  __device__ Values(const Expression& of, C z, C mu, C theta) : of(of), given{z, mu, theta} {}
  __device__ C operator[](int value) const {
    const int number = value - 2 - of.has_theta;
    if (number < 0)
      return value == 0 ? given[0] : value == 1 ? given[1] : given[2];
    return number < of.constants ? static_cast<C>(of.numbers[number]) : made[number - of.constants];
  }
};

// Values lie in the thread's own memory, as registers have no numbers that are found out late; a
// warp's are side by side there. An instruction is any of some twenty operations: whoever needs
// this more than once in a kernel calls it, not inlined.
template <class C>
__device__ inline OfLaw<C> of_expression(const Expression& of, C z, C mu, C theta, bool energy) {
  Values<C> values(of, z, mu, theta);
  const int count = energy ? of.count : of.slopes;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Instruction& what = of.code[i];
    [[maybe_unused]] const C a = values[what.a], b = values[what.b], c = values[what.c], zero = 0,
                             one = 1;
    C value = 0;
    switch (what.op) {
#define PYROMANCY_OPERATION(name, formula)                                                         \
  case Op::name:                                                                                   \
    value = formula;                                                                               \
    break;
      PYROMANCY_OPERATIONS(PYROMANCY_OPERATION)
#undef PYROMANCY_OPERATION
    }
    values.made[i] = value;
  }
  return {values[of.pull], values[of.push], energy ? values[of.deviation] : C(0),
          energy && of.has_theta ? values[of.moment] : C(0)};
}

} // namespace pyromancy::cuda
