#pragma once

// A law of one's own: a program of few instructions that makes the energy of an element's state z
// and prediction mu, and of theta if it has one, and its slopes. Of its values the first is z, the
// second mu, the third theta; numbers follow, and then what the instructions make of values before
// them.

#include <cstdint>

namespace pyromancy {

// The operations, as formulas of vectors a, b and c, of which they take as many as they need, with
// zero and one at hand; operations.h has what they are made of, beside functions.
// clang-format off
#define PYROMANCY_OPERATIONS(ROW)                                                               \
  ROW(add, a + b)                                                                               \
  ROW(sub, subtract(a, b))                                                                      \
  ROW(mul, a * b)                                                                               \
  ROW(div, a / b)                                                                               \
  ROW(neg, -a)                                                                                  \
  ROW(abs, a < zero ? -a : a)                                                                   \
  ROW(sign, a > zero ? one : a < zero ? -one : zero)                                               \
  ROW(max, greatest(a, b))                                                                      \
  ROW(min, -greatest(-a, -b))                                                                   \
  ROW(greater, a > b ? one : zero)                                                              \
  ROW(at_least, a >= b ? one : zero)                                                            \
  ROW(select, a != zero ? b : c)                                                                \
  ROW(sqrt, square_root<C>(a))                                                                  \
  ROW(exp, exp<C>(a))                                                                           \
  ROW(expm1, a > one ? exp<C>(a) - one : expm1<C>(a))                                           \
  ROW(log, log_any<C>(a))                                                                       \
  ROW(log1p, log1p<C>(a))                                                                       \
  ROW(tanh, tanh(a))                                                                            \
  ROW(sigmoid, sigmoid<C>(a))                                                                   \
  ROW(softplus, softplus<C>(a, one))                                                            \
  ROW(logcosh, logcosh<C>(a))                                                                   \
  ROW(pow, exp<C>(b * log_any<C>(a)))                                                           \
  ROW(logaddexp, logaddexp<C>(a, b))
// clang-format on

#define PYROMANCY_NAME(name, value) name,
enum class Op : uint8_t { PYROMANCY_OPERATIONS(PYROMANCY_NAME) };
#undef PYROMANCY_NAME

#define PYROMANCY_ONE(name, value) +1
inline constexpr int64_t kOps = 0 PYROMANCY_OPERATIONS(PYROMANCY_ONE);
#undef PYROMANCY_ONE

inline constexpr int kMostInstructions = 40, kMostConstants = 16;

struct Instruction {
  Op op;
  uint8_t a, b, c;
};

struct Expression {
  int constants, count; // of instructions
  int slopes;           // how many of those, from the first on, pull and push take
  bool has_theta;
  int deviation, pull, push, moment; // moment: where there is a theta
  Instruction code[kMostInstructions];
  double numbers[kMostConstants];

  // The number of the first instruction's value.
  int first() const {
    return given() + constants;
  }
  // How many values come before the numbers.
  int given() const {
    return 2 + has_theta;
  }
  // Whether the energy is one of z - mu.
  bool is_of_distance() const {
    return pull == push;
  }
};

} // namespace pyromancy
