#pragma once

// Vectors as wide as the instruction set this file is compiled for. Kernels include only this kind
// of header: everything lives in a namespace named after the instruction set, so that the linker
// can never hand AVX-512 code to a machine without it.

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
// GCC takes the deliberately undefined operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "../dtype.h"

// For functions of vectors inside loops: a call would spill whatever the loop keeps in registers.
#define PYROMANCY_INLINE __attribute__((always_inline)) inline

namespace pyromancy::PYROMANCY_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T, int n>
struct VecOf {
  typedef T type __attribute__((vector_size(n * sizeof(T))));
};
template <class T, int n>
using VecN = typename VecOf<T, n>::type;

template <class C>
inline constexpr int kLanes = kVectorBytes / sizeof(C);
template <class C>
using Vec = VecN<C, kLanes<C>>;
template <class V>
using Number = std::remove_cvref_t<decltype(V{}[0])>;

inline int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class C>
inline Vec<C> splat(C x) {
  return x -
         Vec<C>{}; // folds to one broadcast; a loop over the lanes may become one insertion each
}

// a b + c, rounded once where the instruction set can. The compiler contracts nothing by itself
// (-ffp-contract=off): it would here and there, as it inlines, and a sample's last bit would depend
// on the tile that it is computed in.
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// c - a b, likewise; fma(-a, b, c) would cost a negation where the compiler does not see through
// it.
inline Vec<float> fnma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec<float>)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return c - a * b;
#endif
}
inline Vec<double> fnma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
  return (Vec<double>)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return c - a * b;
#endif
}

// Raw holds as many elements of storage type T as fit one compute vector.
template <class T>
struct RawOf {
  using type = Vec<T>;
};
template <>
struct RawOf<bfloat16> {
  using type = VecN<uint16_t, kLanes<float>>;
};
template <>
struct RawOf<float16> {
  using type = VecN<uint16_t, kLanes<float>>;
};
template <class T>
using Raw = typename RawOf<T>::type;

using Floats = Vec<float>;
using Words = VecN<uint32_t, kLanes<float>>;
using Halves = VecN<uint16_t, kLanes<float>>;

inline Floats widen(float, Floats v) {
  return v;
}
inline Vec<double> widen(double, Vec<double> v) {
  return v;
}
inline Floats widen(bfloat16, Halves v) {
  return bit_cast<Floats>(__builtin_convertvector(v, Words) << 16);
}

inline Floats narrow(float, Floats v) {
  return v;
}
inline Vec<double> narrow(double, Vec<double> v) {
  return v;
}
// To nearest even; a NaN keeps its upper bits and becomes quiet.
inline Halves narrow(bfloat16, Floats v) {
  const Words u = bit_cast<Words>(v);
  const Words rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const Words nan = (u >> 16) | 0x40;
  return __builtin_convertvector((u & 0x7fffffff) > 0x7f800000 ? nan : rounded, Halves);
}

#if defined(__AVX512F__)
inline Floats widen(float16, Halves v) {
  return (Floats)_mm512_cvtph_ps((__m256i)v);
}
inline Halves narrow(float16, Floats v) {
  return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__F16C__)
inline Floats widen(float16, Halves v) {
  return (Floats)_mm256_cvtph_ps((__m128i)v);
}
inline Halves narrow(float16, Floats v) {
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
inline Floats widen(float16, Halves v) {
  const Words h = __builtin_convertvector(v, Words);
  const Words magnitude = (h & 0x7fff) << 13;
  const Words normal = magnitude + (112u << 23);
  const Words special = magnitude | 0x7f800000;
  // A subnormal m * 2^-24 becomes the mantissa of 2^-14 (1 + m / 2^10), less 2^-14.
  const Words offset = Words{} + (113u << 23);
  const Words subnormal =
      bit_cast<Words>(bit_cast<Floats>(magnitude + (113u << 23)) - bit_cast<Floats>(offset));
  Words u = magnitude < (1u << 23) ? subnormal : normal;
  u = magnitude >= (31u << 23) ? special : u;
  return bit_cast<Floats>(u | ((h & 0x8000) << 16));
}
// To nearest even; overflow gives infinity.
inline Halves narrow(float16, Floats v) {
  const Words u = bit_cast<Words>(v);
  const Words magnitude = u & 0x7fffffff;
  const Words normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Added to 1/2, whose last bit is worth 2^-24 as in a subnormal half, the sum rounds itself.
  const Words half = Words{} + (126u << 23);
  const Words subnormal =
      bit_cast<Words>(bit_cast<Floats>(magnitude) + bit_cast<Floats>(half)) - half;
  const Words nan = ((magnitude >> 13) & 0x3ff) | 0x7e00;
  Words h = magnitude < (113u << 23) ? subnormal : normal;
  h = magnitude >= (143u << 23) ? Words{} + 0x7c00 : h;
  h = magnitude > 0x7f800000 ? nan : h;
  return __builtin_convertvector(h | ((u >> 16) & 0x8000), Halves);
}
#endif

// How many elements a load or a store touches: a whole vector or its first n.
struct Whole {};
struct First {
  int n;
};

template <class R, class T>
inline R load_raw(const T* p, Whole) {
  R r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}

template <class R, class T>
inline void store_raw(T* p, R r, Whole) {
  __builtin_memcpy(p, &r, sizeof r);
}

// Elements beyond the first n read as zero and stay untouched in memory.
template <class R, class T>
inline R load_raw(const T* p, First first) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << first.n) - 1;
  if constexpr (sizeof(T) == 2)
    return (R)_mm256_maskz_loadu_epi16(mask, p);
  else if constexpr (sizeof(T) == 4)
    return (R)_mm512_maskz_loadu_epi32(mask, p);
  else
    return (R)_mm512_maskz_loadu_epi64(mask, p);
#else
  T elements[sizeof(R) / sizeof(T)] = {};
  for (int i = 0; i < first.n; ++i)
    elements[i] = p[i];
  return load_raw<R>(elements, Whole{});
#endif
}

template <class R, class T>
inline void store_raw(T* p, R r, First first) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << first.n) - 1;
  if constexpr (sizeof(T) == 2)
    _mm256_mask_storeu_epi16(p, mask, (__m256i)r);
  else if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_epi32(p, mask, (__m512i)r);
  else
    _mm512_mask_storeu_epi64(p, mask, (__m512i)r);
#else
  T elements[sizeof(R) / sizeof(T)];
  store_raw(elements, r, Whole{});
  for (int i = 0; i < first.n; ++i)
    p[i] = elements[i];
#endif
}

template <class T, class Extent = Whole>
inline Vec<Compute<T>> load(const T* p, Extent extent = {}) {
  return widen(T{}, load_raw<Raw<T>>(p, extent));
}

template <class T, class Extent = Whole>
inline void store(T* p, Vec<Compute<T>> v, Extent extent = {}) {
  store_raw(p, narrow(T{}, v), extent);
}

// One element in compute precision.
template <class T>
inline Compute<T> load_one(const T* p) {
  return load(p, First{1})[0];
}

// f(i, extent) for the n elements from 0 on, a vector of C at a time.
template <class C, class F>
inline void for_vectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += kLanes<C>)
    f(i, Whole{});
  if (i < n)
    f(i, First{static_cast<int>(n - i)});
}

template <class C, int n, int... i>
inline VecN<C, n / 2> half_of(VecN<C, n> v, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(v, v, i...);
}

template <int first, int... i>
constexpr std::integer_sequence<int, (first + i)...> offset(std::integer_sequence<int, i...>) {
  return {};
}

template <class C, int n>
inline VecN<C, n / 2> low(VecN<C, n> v) {
  return half_of<C, n>(v, std::make_integer_sequence<int, n / 2>{});
}
template <class C, int n>
inline VecN<C, n / 2> high(VecN<C, n> v) {
  return half_of<C, n>(v, offset<n / 2>(std::make_integer_sequence<int, n / 2>{}));
}

// Sum of the lanes, as a tree: its order depends on the vector width alone.
template <class C, int n = kLanes<C>>
inline C sum(VecN<C, n> v) {
  if constexpr (n == 2)
    return v[0] + v[1];
  else
    return sum<C, n / 2>(low<C, n>(v) + high<C, n>(v));
}

// acc[0 .. lanes) += v, carried in double.
inline void add_to(double* acc, Vec<double> v) {
  store(acc, load(acc) + v);
}
inline void add_to(double* acc, Floats v) {
  constexpr int n = kLanes<float>;
  add_to(acc, __builtin_convertvector(low<float, n>(v), Vec<double>));
  add_to(acc + n / 2, __builtin_convertvector(high<float, n>(v), Vec<double>));
}

template <class C, int... i>
inline Vec<C> interleave_low(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + (i % 2 ? kLanes<C> : 0))...);
}
template <class C, int... i>
inline Vec<C> interleave_high(Vec<C> a, Vec<C> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (i / 2 + kLanes<C> / 2 + (i % 2 ? kLanes<C> : 0))...);
}

// Transposes the square of kLanes vectors: each of the log2(lanes) rounds interleaves the two
// halves of the rows, which rotates the bits of (row, column) by one.
template <class C>
inline void transpose(Vec<C> (&row)[kLanes<C>]) {
  constexpr int n = kLanes<C>;
  constexpr auto lanes = std::make_integer_sequence<int, n>{};
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    Vec<C> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave_low<C>(row[i], row[i + n / 2], lanes);
      next[2 * i + 1] = interleave_high<C>(row[i], row[i + n / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i)
      row[i] = next[i];
  }
}

template <class C>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Int = int32_t;
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float shift = 12582912.f; // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float lowest = -104.f, highest = 89.f;
  static constexpr int terms = 7, mantissa = 23, bias = 127;
};
template <>
struct ExpConstants<double> {
  using Int = int64_t;
  static constexpr double log2e = 1.4426950408889634074;
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double shift = 6755399441055744.; // 1.5 * 2^52
  static constexpr double lowest = -746., highest = 710.;
  static constexpr int terms = 13, mantissa = 52, bias = 1023;
};

// a / b for normal b, within 1 unit in the last place: float's own division takes four times as
// long.
inline Vec<float> divide(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  Vec<float> inverse = (Vec<float>)_mm512_rcp14_ps((__m512)b);
  inverse = fma(fnma(b, inverse, splat(1.f)), inverse, inverse);
  const Vec<float> quotient = a * inverse;
  return fma(fnma(b, quotient, a), inverse, quotient);
#else
  return a / b;
#endif
}
inline Vec<double> divide(Vec<double> a, Vec<double> b) {
  return a / b;
}

template <class V>
PYROMANCY_INLINE V subtract(V a, V b) {
  return a - b;
}

// Correctly rounded.
template <class C>
PYROMANCY_INLINE Vec<C> square_root(Vec<C> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm512_sqrt_ps((__m512)x);
  else
    return (Vec<C>)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm256_sqrt_ps((__m256)x);
  else
    return (Vec<C>)_mm256_sqrt_pd((__m256d)x);
#else
  for (int i = 0; i < kLanes<C>; ++i)
    x[i] = sizeof(C) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
  return x;
#endif
}

// The nearest of [low, high]; NaN stays.
template <class C>
PYROMANCY_INLINE Vec<C> clamp(Vec<C> x, C low, C high) {
#if defined(__AVX512F__) // the compiler makes these a comparison and a blend each
  if constexpr (sizeof(C) == 4) {
    const __m512 above = _mm512_max_ps((__m512)splat(low), (__m512)x);
    return (Vec<C>)_mm512_min_ps((__m512)splat(high), above);
  } else {
    const __m512d above = _mm512_max_pd((__m512d)splat(low), (__m512d)x);
    return (Vec<C>)_mm512_min_pd((__m512d)splat(high), above);
  }
#else
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
#endif
}

// 1 / n! + x / (n + 1)! + x^2 / (n + 2)! + ..., up to the term with `last`!
template <class C>
PYROMANCY_INLINE Vec<C> exponential_series(Vec<C> x, int n, int last) {
  double factorial[20] = {1};
  for (int i = 1; i <= last; ++i)
    factorial[i] = i * factorial[i - 1];
  Vec<C> e = splat(static_cast<C>(1 / factorial[last]));
#pragma GCC unroll 16
  for (int i = last - 1; i >= n; --i)
    e = fma(e, x, splat(static_cast<C>(1 / factorial[i])));
  return e;
}

// e^x within 2 units in the last place, subnormal results within 1 of theirs; 0, infinity and NaN
// where they belong. x = k ln 2 + r with |r| <= ln(2) / 2, and e^r by its Taylor series, whose
// remainder is below 1e-8 (float, r^8 / 8!) and 5e-18 (double, r^14 / 14!).
template <class C>
PYROMANCY_INLINE Vec<C> exp(Vec<C> x) {
  using K = ExpConstants<C>;
  x = clamp<C>(x, K::lowest, K::highest);
  const Vec<C> shifted = fma(x, splat<C>(K::log2e), splat<C>(K::shift));
  const Vec<C> k = shifted - K::shift;
  const Vec<C> r = fnma(k, splat<C>(K::ln2_low), fnma(k, splat<C>(K::ln2_high), x));
  const Vec<C> e = exponential_series<C>(r, 0, K::terms);
#if defined(__AVX512F__)
  if constexpr (sizeof(C) == 4)
    return (Vec<C>)_mm512_scalef_ps((__m512)e, (__m512)k);
  else
    return (Vec<C>)_mm512_scalef_pd((__m512d)e, (__m512d)k);
#else
  // 2^k in two factors, each a normal number even where the result is not.
  using Ints = VecN<typename K::Int, kLanes<C>>;
  const Ints exponent = bit_cast<Ints>(shifted) - bit_cast<Ints>(splat<C>(K::shift));
  const Ints half = exponent >> 1;
  const Vec<C> scale = bit_cast<Vec<C>>((half + K::bias) << K::mantissa);
  const Vec<C> rest = bit_cast<Vec<C>>((exponent - half + K::bias) << K::mantissa);
  return e * scale * rest;
#endif
}

} // namespace pyromancy::PYROMANCY_ISA
