#pragma once

#include "buffers.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// What a stepper knows of a tile's samples.
template <class Layout>
struct Stepping {
  Progress of[Layout::samples];
  struct Weights {
    Vec<typename Layout::C> g, s, h;
  } s[Layout::width], v[Layout::width];
  Vec<typename Layout::C> keeps[Layout::width], rate[Layout::width];
};

// A tile's place in the batch, and what is kept of it.
template <class Layout>
struct Workspace {
  using C = typename Layout::C;
  using P = typename Layout::Products;
  static constexpr int w = Layout::w, width = Layout::width;
  static constexpr int64_t row = width * w; // elements

  const ChainArgs& args;
  Buffers<P>* const buffers;
  const int64_t first; // sample
  Stepping<Layout>* const stepping;

  int64_t count() const {
    return smaller(Layout::samples, args.batch - first);
  }

  void load_samples(const void* from, int64_t stride, int64_t n, C* to) const {
    Layout::load_samples(static_cast<const C*>(from) + first * stride, stride, n, count(), to);
  }

  void store_samples(const C* from, int64_t n, void* to) const {
    if (to)
      Layout::store_samples(from, n, count(), static_cast<C*>(to) + first * n);
  }

  void fill(C* to, int64_t n, C value) const {
    for (int64_t at = 0; to && at < Layout::rows(n) * row; at += w)
      store(to + at, splat(value));
  }

  // Makes operands of rows i to i + rows of what products take.
  void round(int64_t l, Input of, int64_t i, int64_t rows) const {
    if constexpr (P::kColumns > 1)
      if (auto* const to = buffers[l].paired[static_cast<int>(of)])
        Layout::round(buffers[l].input(of), args.node[l].n, i, rows, to);
  }
  void round(int64_t l, Input of) const {
    round(l, of, 0, Layout::rows(args.node[l].n));
  }

  // The rate of a node's law at row i, of the samples of vector v.
  Vec<C> rate(const ChainNode& node, int64_t i, int v) const {
    const Vec<C> p = node.rate ? Layout::constant(node.rate, i) : splat(C(1));
    return weighted(node, p, v);
  }

  // The weight of its energy, likewise.
  Vec<C> weight(const ChainNode& node, int v) const {
    return weighted(node, splat(static_cast<C>(node.weight)), v);
  }

  // What is linear in a node's energy, times the weights of the samples of vector v.
  Vec<C> weighted(const ChainNode& node, Vec<C> x, int v) const {
    return node.sample_weights ? x * Layout::of_samples(node.sample_weights, first, v) : x;
  }

  // x where an element is not known, else 0.
  static Vec<C> unknown(const Buffers<P>& b, int64_t at, Vec<C> x) {
    return b.known ? load(b.known + at) > C(0) ? Vec<C>{} : x : x;
  }

  // f(node, row, vector, where they are) for all elements that move
  template <class F>
  void each_moving(F f) const {
    for (int64_t l = 0; l < args.nodes; ++l)
      for (int64_t i = 0; args.node[l].free && i < Layout::rows(args.node[l].n); ++i)
        for (int v = 0; v < width; ++v)
          f(l, i, v, i * row + v * w);
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
