#pragma once

// Tiles that go on half as wide, where half of their samples are at their end.

#include "tile.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// Samples of a tile that are not at their end: how many, and where the first of them are.
template <class Layout>
struct Half {
  int count;
  int at[Layout::w];
};

template <class Layout>
Half<Layout> live(const Tile<Layout>& tile) {
  Half<Layout> half{};
  for (int i = 0; i < Layout::samples; ++i)
    if (!tile.stepping->of[i].done) {
      if (half.count < Layout::w)
        half.at[half.count] = i;
      ++half.count;
    }
  return half;
}

// f(narrow's, wide's) for every buffer of a sweep, [n, vectors], that holds something between two.
template <class N, class W, class F>
void each_lasting(const Tile<N>& narrow, const Tile<W>& wide, F f) {
  using C = typename N::C;
  for (int64_t l = 0; l < narrow.args.nodes; ++l) {
    const ChainNode& node = narrow.args.node[l];
    const auto &a = narrow.buffers[l], &b = wide.buffers[l];
    const auto one = [&](C* of_narrow, C* of_wide) {
      if (of_narrow)
        f(of_narrow, of_wide, node.n);
    };
    one(a.z, b.z);
    one(a.mu, b.mu);
    one(a.rest, b.rest);
    one(a.theta, b.theta);
    if (!node.free)
      continue;
    if (a.v != a.z)
      one(a.v, b.v);
    one(a.g, b.g);
    one(a.s, b.s);
    one(a.h, b.h);
    one(a.known, b.known);
    if (a.scale)
      f(a.scale, b.scale, 1);
  }
}

// Places in two vectors of numbers.
template <class C>
using Lanes = VecN<typename ExpConstants<C>::Int, kLanes<C>>;

// Goes on with these samples of a tile twice as wide.
template <class N, class W>
void take(Tile<N>& narrow, const Tile<W>& wide, const Half<W>& half) {
  using C = typename N::C;
  constexpr int w = N::w;
  Lanes<C> from;
  for (int j = 0; j < w; ++j) {
    from[j] = half.at[j < half.count ? j : 0];
    narrow.stepping->of[j] = wide.stepping->of[from[j]];
    narrow.stepping->of[j].done |= j >= half.count;
  }
  each_lasting(narrow, wide, [&](C* to, const C* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      store(to + i * w, __builtin_shuffle(load(x + 2 * i * w), load(x + (2 * i + 1) * w), from));
  });
  for (int64_t l = 0; l < narrow.args.nodes; ++l)
    if (!narrow.args.node[l].free)
      narrow.activate_source(l, 0, narrow.args.node[l].n);
  narrow.prepare_motion();
}

// Puts them back in their places.
template <class N, class W>
void give_back(const Tile<N>& narrow, Tile<W>& wide, const Half<W>& half) {
  using C = typename N::C;
  constexpr int w = N::w;
  Lanes<C> from[2];
  for (int i = 0; i < 2 * w; ++i)
    from[i / w][i % w] = i % w;
  for (int j = 0; j < half.count; ++j) {
    from[half.at[j] / w][half.at[j] % w] = w + j;
    wide.stepping->of[half.at[j]] = narrow.stepping->of[j];
  }
  each_lasting(narrow, wide, [&](const C* x, C* to, int64_t n) {
    for (int64_t q = 0; q < 2 * n; ++q)
      store(to + q * w, __builtin_shuffle(load(to + q * w), load(x + q / 2 * w), from[q % 2]));
  });
  wide.prepare_motion();
}

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
