#pragma once

#include <type_traits>

#include "chain_kernel.h"
#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {

// e^x - 1 within 3 units in the last place: with x = k ln 2 + r it is 2^k (e^r - 1) + (2^k - 1),
// where e^r - 1 comes from its series and so keeps its accuracy near 0.
template <class C>
PYROMANCY_INLINE Vec<C> expm1(Vec<C> x) {
  using K = ExpConstants<C>;
  using Ints = VecN<typename K::Int, kLanes<C>>;
  x = clamp<C>(x, -40, K::highest - 2);
  const Vec<C> shifted = fma(x, splat<C>(K::log2e), splat<C>(K::shift));
  const Vec<C> k = shifted - K::shift;
  const Vec<C> r = fnma(k, splat<C>(K::ln2_low), fnma(k, splat<C>(K::ln2_high), x));
  const Vec<C> series = r * exponential_series<C>(r, 1, K::terms);
  const Ints exponent = bit_cast<Ints>(shifted) - bit_cast<Ints>(splat<C>(K::shift));
  const Vec<C> scale = bit_cast<Vec<C>>((exponent + K::bias) << K::mantissa);
  return fma(scale, series, scale - C(1));
}

// log(1 + u) for u in [0, 1], within 3 units in the last place: 2 artanh(u / (2 + u)) by its
// series.
template <class C>
PYROMANCY_INLINE Vec<C> log1p_unit(Vec<C> u) {
  constexpr int terms = sizeof(C) == 4 ? 8 : 18; // (1/3)^(2 terms) is below the last place
  const Vec<C> s = divide(u, u + C(2));
  const Vec<C> square = s * s;
  Vec<C> series = splat<C>(C(1) / C(2 * terms + 1));
  for (int i = terms - 1; i >= 0; --i)
    series = fma(series, square, splat<C>(C(1) / C(2 * i + 1)));
  return C(2) * s * series;
}

// float: within 7 units in the last place (6 where multiply-adds are fused), and nowhere above 1. A
// quotient of polynomials in x^2, minimax for tanh(x) / x on [0, 9.02] with an error of 2.6e-8;
// beyond, where tanh(x) rounds to 1, it grows until it is cut there.
PYROMANCY_INLINE Vec<float> tanh(Vec<float> x) {
  x = clamp<float>(x, -9.4f, 9.4f);
  const Vec<float> square = x * x;
  Vec<float> p = splat(1.338618e-8f), q = splat(7.7906117e-7f);
  p = fma(p, square, splat(2.06359e-5f));
  q = fma(q, square, splat(3.2884895e-4f));
  p = fma(p, square, splat(3.4974308e-3f));
  q = fma(q, square, splat(2.5884252e-2f));
  p = fma(p, square, splat(1.3382664e-1f));
  q = fma(q, square, splat(4.6715987e-1f));
  p = fma(p, square, splat(1.f));
  q = fma(q, square, splat(1.f));
  return clamp<float>(divide(x * p, q), -1.f, 1.f);
}
// double: within 4 units in the last place
PYROMANCY_INLINE Vec<double> tanh(Vec<double> x) {
  const Vec<double> e = expm1<double>(2.0 * clamp<double>(x, -20, 20));
  return divide(e, e + 2.0);
}

template <class C>
PYROMANCY_INLINE Vec<C> sigmoid(Vec<C> x) {
  const Vec<C> e = exp<C>(x < C(0) ? x : -x);
  return divide(x < C(0) ? e : splat<C>(1), e + C(1));
}

// float: Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. double: the C library's, one at a
// time.
PYROMANCY_INLINE Vec<float> erf(Vec<float> x) {
  Vec<float> magnitude = x < 0.f ? -x : x;
  magnitude = magnitude > 10.f ? splat(10.f) : magnitude;
  const Vec<float> t = divide(splat(1.f), 0.3275911f * magnitude + 1.f);
  Vec<float> p = splat<float>(1.061405429f);
  p = fma(p, t, splat<float>(-1.453152027f));
  p = fma(p, t, splat<float>(1.421413741f));
  p = fma(p, t, splat<float>(-0.284496736f));
  p = fma(p, t, splat<float>(0.254829592f));
  const Vec<float> y = 1.f - p * t * exp<float>(-x * x);
  return x < 0.f ? -y : y;
}
inline Vec<double> erf(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i)
    x[i] = __builtin_erf(x[i]);
  return x;
}

inline constexpr double kSqrtHalf = 0.70710678118654752440, kInvSqrt2Pi = 0.39894228040143267794;
inline constexpr double kGeluScale = 0.79788456080286535588, kGeluCubic = 0.044715; // sqrt(2 / pi)

template <class C>
PYROMANCY_INLINE Vec<C> activate(Nonlinearity f, Vec<C> x) {
  const C p = static_cast<C>(f.parameter);
  switch (f.kind) {
  case Activation::identity:
    return x;
  case Activation::relu:
    return x < C(0) ? splat<C>(0) : x; // NaN stays
  case Activation::leaky_relu:
    return x > C(0) ? x : x * p;
  case Activation::elu:
    return x > C(0) ? x : p * expm1<C>(x);
  case Activation::silu:
    return x * sigmoid<C>(x);
  case Activation::gelu:
    return C(0.5) * x * (erf(x * C(kSqrtHalf)) + C(1));
  case Activation::gelu_tanh:
    return C(0.5) * x * (tanh(C(kGeluScale) * (x + C(kGeluCubic) * x * x * x)) + C(1));
  case Activation::tanh:
    return tanh(x);
  case Activation::sigmoid:
    return sigmoid<C>(x);
  case Activation::softplus: {
    const Vec<C> y = x * p;
    const Vec<C> soft =
        ((y > C(0) ? y : splat<C>(0)) + log1p_unit<C>(exp<C>(y < C(0) ? y : -y))) / p;
    return y > C(20) ? x : soft;
  }
  }
  __builtin_unreachable();
}

// f'(x), given also y = f(x)
template <class C>
PYROMANCY_INLINE Vec<C> slope(Nonlinearity f, Vec<C> x, Vec<C> y) {
  const C p = static_cast<C>(f.parameter);
  const Vec<C> one = splat<C>(1), zero = splat<C>(0);
  switch (f.kind) {
  case Activation::identity:
    return one;
  case Activation::relu:
    return y > C(0) ? one : zero;
  case Activation::leaky_relu:
    return x > C(0) ? one : splat<C>(p);
  case Activation::elu:
    return x > C(0) ? one : y + p;
  case Activation::silu: {
    const Vec<C> s = sigmoid<C>(x);
    return s * (x * (C(1) - s) + C(1));
  }
  case Activation::gelu:
    return C(0.5) * (erf(x * C(kSqrtHalf)) + C(1)) + x * C(kInvSqrt2Pi) * exp<C>(C(-0.5) * x * x);
  case Activation::gelu_tanh: {
    const Vec<C> t = tanh(C(kGeluScale) * (x + C(kGeluCubic) * x * x * x));
    return C(0.5) * (t + C(1)) +
           C(0.5) * x * (C(1) - t * t) * C(kGeluScale) * (C(3 * kGeluCubic) * x * x + C(1));
  }
  case Activation::tanh:
    return C(1) - y * y;
  case Activation::sigmoid:
    return y * (C(1) - y);
  case Activation::softplus:
    return x * p > C(20) ? one : sigmoid<C>(x * p);
  }
  __builtin_unreachable();
}

// f(kind), with the kind a constant of the compiler's
template <class F>
inline void with_kind(Activation kind, F f) {
  using enum Activation;
  switch (kind) {
  case identity:
    return f(std::integral_constant<Activation, identity>{});
  case relu:
    return f(std::integral_constant<Activation, relu>{});
  case leaky_relu:
    return f(std::integral_constant<Activation, leaky_relu>{});
  case elu:
    return f(std::integral_constant<Activation, elu>{});
  case silu:
    return f(std::integral_constant<Activation, silu>{});
  case gelu:
    return f(std::integral_constant<Activation, gelu>{});
  case gelu_tanh:
    return f(std::integral_constant<Activation, gelu_tanh>{});
  case tanh:
    return f(std::integral_constant<Activation, tanh>{});
  case sigmoid:
    return f(std::integral_constant<Activation, sigmoid>{});
  case softplus:
    return f(std::integral_constant<Activation, softplus>{});
  }
}

// y = f(x), for so many vectors
template <class C>
__attribute__((noinline)) void activate_all(Nonlinearity f, const C* x, C* y, int64_t vectors) {
  with_kind(f.kind, [&](auto kind) {
    if (kind != Activation::identity || x != y)
      for (int64_t q = 0; q < vectors; ++q)
        store(y + q * kLanes<C>, activate<C>({kind, f.parameter}, load(x + q * kLanes<C>)));
  });
}

} // namespace pyromancy::PYROMANCY_ISA
