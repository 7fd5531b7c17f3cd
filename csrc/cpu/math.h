#pragma once

// Functions of vectors: see arithmetic.h.

#include <limits>

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

// log x for x >= 1, within 3 units in the last place: with x = 2^k (1 + u) it is k ln 2 + log(1 +
// u).
template <class C>
PYROMANCY_INLINE Vec<C> log_upwards(Vec<C> x) {
  using K = ExpConstants<C>;
  using Ints = VecN<typename K::Int, kLanes<C>>;
  constexpr typename K::Int fraction = (typename K::Int{1} << K::mantissa) - 1;
  constexpr typename K::Int one = typename K::Int{K::bias} << K::mantissa;
  const Ints bits = bit_cast<Ints>(x);
  const Vec<C> k = __builtin_convertvector((bits >> K::mantissa) - K::bias, Vec<C>);
  const Vec<C> part = log1p_unit<C>(bit_cast<Vec<C>>((bits & fraction) | one) - C(1));
  const Vec<C> log = fma(k, splat<C>(K::ln2_high), fma(k, splat<C>(K::ln2_low), part));
  return x - x == C(0) ? log : x; // infinity and NaN stay
}

// log(u) of a normal number u
template <class C>
PYROMANCY_INLINE Vec<C> log(Vec<C> u) {
  using K = ExpConstants<C>;
  using Ints = VecN<typename K::Int, kLanes<C>>;
  constexpr typename K::Int half = typename K::Int{1} << (K::mantissa - 1);
  // u = m 2^e with m in [3/4, 3/2), so that near 1 nothing cancels
  const Ints bits = bit_cast<Ints>(u);
  const Ints e = ((bits + half) >> K::mantissa) - K::bias;
  const Vec<C> m = bit_cast<Vec<C>>(bits - (e << K::mantissa));
  const Vec<C> exponent = __builtin_convertvector(e, Vec<C>);
  return fma(exponent, splat<C>(K::ln2_high),
             fma(exponent, splat<C>(K::ln2_low), log1p_unit<C>(m - C(1))));
}

// log x within 3 units in the last place; of 0 minus infinity, of less NaN. What is subnormal is
// multiplied by 2^64 first.
template <class C>
PYROMANCY_INLINE Vec<C> log_any(Vec<C> x) {
  constexpr C infinity = std::numeric_limits<C>::infinity(), ln2_64 = C(44.361419555836499802);
  const Vec<C> zero{}, outer = x == zero ? splat(-infinity) : x > zero ? x : zero / zero;
  const auto small = x < std::numeric_limits<C>::min();
  const Vec<C> whole = log<C>(small ? x * C(18446744073709551616.) : x);
  return (x > zero) & (x < infinity) ? (small ? whole - ln2_64 : whole) : outer;
}

// log(1 + x) within 4 units in the last place, likewise; what 1 + x is rounded by is made up for.
template <class C>
PYROMANCY_INLINE Vec<C> log1p(Vec<C> x) {
  const Vec<C> y = x + C(1), off = y - C(1), whole = log_any<C>(y);
  const auto inside = (y > C(0)) & (off < std::numeric_limits<C>::infinity());
  return off == C(0) ? x : inside ? whole * (x / off) : whole;
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

// Of the normal distribution what lies below x, and e^(-x^2 / 2).
template <class C>
struct Normal {
  Vec<C> below, bell;
};

// float: within 8 units in the last place down to -13, below which it is subnormal. With a = |x| it
// is t p(t) e^(-a^2 / 2) below 0, where t = 1 / (1 + 0.35 a) and p is minimax for a up to 14.5,
// with a relative error of 3.2e-8; and what that leaves of 1 above. What a^2 is rounded by is made
// up for.
PYROMANCY_INLINE Normal<float> normal(Vec<float> x) {
  Vec<float> a = x < 0.f ? -x : x;
  a = a > 14.5f ? splat(14.5f) : a;
  const Vec<float> t = divide(splat(1.f), fma(splat(0.35f), a, splat(1.f)));
  Vec<float> p = splat(-0.029157875f);
  p = fma(p, t, splat(0.14403087f));
  p = fma(p, t, splat(-0.2558389f));
  p = fma(p, t, splat(0.15931958f));
  p = fma(p, t, splat(-0.023212273f));
  p = fma(p, t, splat(0.10555247f));
  p = fma(p, t, splat(0.1198213f));
  p = fma(p, t, splat(0.13986352f));
  p = fma(p, t, splat(0.1396213f));
  const Vec<float> square = a * a, rest = fma(a, a, -square);
  const Vec<float> e = exp<float>(-0.5f * square), bell = fma(-0.5f * rest, e, e);
  const Vec<float> tail = p * t * bell;
  return {x < 0.f ? tail : 1.f - tail, bell};
}
// double: the C library's, one at a time
inline Normal<double> normal(Vec<double> x) {
  const Vec<double> bell = exp<double>(-0.5 * x * x);
  for (int i = 0; i < kLanes<double>; ++i)
    x[i] = 0.5 * __builtin_erfc(x[i] * -0.70710678118654752440);
  return {x, bell};
}

} // namespace pyromancy::PYROMANCY_ISA
