#pragma once

// The activations' values and derivatives.

#include "activations.h"
#include "arithmetic.h"

namespace pyromancy::PYROMANCY_TARGET {

template <class C>
PYROMANCY_FORMULA Vec<C> sigmoid(Vec<C> x) {
  const Vec<C> e = exp<C>(x < C(0) ? x : -x);
  return divide(x < C(0) ? e : splat<C>(1), e + C(1));
}

// Below 0 the exponential enters as two roots of it, so that nothing is lost where it is subnormal
// and the product is larger.
template <class C>
PYROMANCY_FORMULA Vec<C> silu(Vec<C> x) {
  const Vec<C> root = exp<C>(C(0.5) * (x < C(0) ? x : -x));
  const Vec<C> share = divide(x < C(0) ? root : splat<C>(1), root * root + C(1));
  return (x < C(0) ? x * root : x) * share;
}
template <class C>
PYROMANCY_FORMULA Vec<C> silu_slope(Vec<C> x) {
  const Vec<C> root = exp<C>(C(0.5) * (x < C(0) ? x : -x));
  const Vec<C> larger = divide(splat<C>(1), root * root + C(1)), share = root * larger;
  const Vec<C> factor = x * (x < C(0) ? larger : root * share) + C(1); // x sigmoid(-x) + 1
  return x < C(0) ? factor * root * share : factor * larger;
}

template <class C>
PYROMANCY_FORMULA Vec<C> gelu_slope(Vec<C> x) {
  constexpr double inverse_sqrt_2pi = 0.39894228040143267794;
  const auto [below, bell] = normal(x);
  return below + x * C(inverse_sqrt_2pi) * bell;
}

inline constexpr double kGeluScale = 0.79788456080286535588, kGeluCubic = 0.044715; // sqrt(2 / pi)

// tanh's approximation of the normal distribution, which stretches it to [0, 1]
template <class C>
PYROMANCY_FORMULA Vec<C> gelu_gate(Vec<C> x) {
  return C(0.5) * (tanh(C(kGeluScale) * (x + C(kGeluCubic) * x * x * x)) + C(1));
}

template <class C>
PYROMANCY_FORMULA Vec<C> gelu_tanh_slope(Vec<C> x) {
  const Vec<C> t = tanh(C(kGeluScale) * (x + C(kGeluCubic) * x * x * x));
  return C(0.5) * (t + C(1)) +
         C(0.5) * x * (C(1) - t * t) * C(kGeluScale) * (C(3 * kGeluCubic) * x * x + C(1));
}

template <class C>
PYROMANCY_FORMULA Vec<C> softplus(Vec<C> x, Vec<C> beta) {
  const Vec<C> y = x * beta;
  const Vec<C> soft =
      ((y > C(0) ? y : splat<C>(0)) + log1p_unit<C>(exp<C>(y < C(0) ? y : -y))) / beta;
  return y > C(20) ? x : soft;
}

inline constexpr double kSeluScale = 1.0507009873554804934; // as torch has it, and -f(-infinity)
inline constexpr double kSeluDepth = 1.6732632423543772848 * kSeluScale;

template <class C>
PYROMANCY_FORMULA Vec<C> selu(Vec<C> x) {
  return x > C(0) ? x * C(kSeluScale) : expm1<C>(x) * C(kSeluDepth);
}

// f(x)
template <class C>
PYROMANCY_FORMULA Vec<C> activate(Nonlinearity f, Vec<C> x) {
  [[maybe_unused]] const Vec<C> p = splat(static_cast<C>(f.parameter)), zero = splat<C>(0);
#define PYROMANCY_VALUE(name, value, slope)                                                        \
  case Activation::name:                                                                           \
    return value;
  switch (f.kind) { PYROMANCY_ACTIVATIONS(PYROMANCY_VALUE) }
#undef PYROMANCY_VALUE
  __builtin_unreachable();
}

// f'(x), given also y = f(x)
template <class C>
PYROMANCY_FORMULA Vec<C> slope(Nonlinearity f, Vec<C> x, Vec<C> y) {
  const Vec<C> p = splat(static_cast<C>(f.parameter)), zero = splat<C>(0), one = splat<C>(1);
#define PYROMANCY_SLOPE(name, value, slope)                                                        \
  case Activation::name:                                                                           \
    return slope;
  switch (f.kind) { PYROMANCY_ACTIVATIONS(PYROMANCY_SLOPE) }
#undef PYROMANCY_SLOPE
  __builtin_unreachable();
}

} // namespace pyromancy::PYROMANCY_TARGET
