#pragma once

// Noise from N(0, 1) that is a function of a seed and of where it is used alone, and so of no
// thread and no tile: Philox4x32-10 (Salmon et al., 2011) and the transform of Box and Muller.
// python/pyromancy/methods/noise.py is the other half.

#include "../cpu/math.h"

namespace pyromancy::PYROMANCY_ISA {

template <class C>
using Counts = VecN<uint32_t, kLanes<C>>;

// Counters of 128 bits, a lane each, to as many bits at random.
template <class C>
PYROMANCY_INLINE void philox(uint64_t seed, Counts<C> (&of)[4]) {
  using Wide = VecN<uint64_t, kLanes<C> / 2>; // of pairs of lanes
  constexpr uint64_t kLow = 0xffffffff;
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const auto multiply = [](Counts<C> x, uint64_t by, Counts<C>& high) {
    const Wide pairs = bit_cast<Wide>(x), even = (pairs & kLow) * by, odd = (pairs >> 32) * by;
    high = bit_cast<Counts<C>>((even >> 32) | (odd & ~kLow));
    return bit_cast<Counts<C>>((even & kLow) | (odd << 32));
  };
  for (int round = 0; round < 10; ++round) {
    Counts<C> high[2];
    const Counts<C> a = multiply(of[0], 0xD2511F53, high[0]);
    const Counts<C> b = multiply(of[2], 0xCD9E8D57, high[1]);
    of[0] = high[1] ^ of[1] ^ key[0];
    of[2] = high[0] ^ of[3] ^ key[1];
    of[1] = b;
    of[3] = a;
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
}

// sin and cos of 2 pi u, for u in [0, 1]
template <class C>
PYROMANCY_INLINE void circle(Vec<C> u, Vec<C>& sine, Vec<C>& cosine) {
  using K = ExpConstants<C>;
  using Ints = VecN<typename K::Int, kLanes<C>>;
  const Vec<C> shifted = fma(u, splat(C(4)), splat<C>(K::shift)), quarters = shifted - K::shift;
  const Vec<C> x = C(6.283185307179586477) * fma(quarters, splat(C(-0.25)), u); // up to pi / 4
  const Vec<C> square = x * x;
  constexpr int last = sizeof(C) == 4 ? 9 : 17;
  Vec<C> s = splat(C(1)), c = splat(C(1));
#pragma GCC unroll 8
  for (int i = last; i > 1; i -= 2) {
    s = fma(s, square * C(-1.0 / (i * (i - 1))), splat(C(1)));
    c = fma(c, square * C(-1.0 / ((i - 1) * (i - 2))), splat(C(1)));
  }
  s = s * x;
  const Ints turn = bit_cast<Ints>(shifted) & 3;
  const Vec<C> a = (turn & 1) != 0 ? c : s, b = (turn & 1) != 0 ? s : c;
  sine = turn > 1 ? -a : a;
  cosine = (turn == 1) | (turn == 2) ? -b : b;
}

// Noise for four elements of a sample in a row, from the one that is 4 `block` on.
template <class C>
PYROMANCY_INLINE void noise(uint64_t seed, Counts<C> sample, uint32_t node, uint32_t step,
                            Counts<C> block, Vec<C> (&of)[4]) {
  Counts<C> words[4] = {block, Counts<C>{} + node, Counts<C>{} + step, sample};
  philox<C>(seed, words);
  for (int i = 0; i < 4; i += 2) {
    const auto unit = [&](Counts<C> x) { // in (0, 1]
      return __builtin_convertvector(x, Vec<C>) * C(0x1p-32) + C(0x1p-33);
    };
    const Vec<C> radius = square_root<C>(C(-2) * log<C>(unit(words[i])));
    Vec<C> sine, cosine;
    circle<C>(unit(words[i + 1]), sine, cosine);
    of[i] = radius * cosine;
    of[i + 1] = radius * sine;
  }
}

} // namespace pyromancy::PYROMANCY_ISA
