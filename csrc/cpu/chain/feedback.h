#pragma once

#include "errors.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// What errors make of the nodes that predict them.
template <class Layout>
struct Feedback : Errors<Layout> {
  using Base = Errors<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers;
  using typename Base::C, typename Base::P;

  // What of the errors that node l predicts skips products on its way back, of rows i to i + rows;
  // null where nothing does.
  struct Skipping {
    const C* delta;
    Vec<C> by;
  };
  Skipping skipping(int64_t l, int64_t i, int64_t rows) const {
    const Numbers skips = args.node[l].away.skips;
    const auto one = [&](int64_t e) {
      return Skipping{buffers[args.edge[e].target].delta, splat(static_cast<C>(args.edge[e].skip))};
    };
    const bool gathered = args.node[l].throughs;
    if (skips.count < 2 && !gathered)
      return skips.count ? one(*skips.first) : Skipping{nullptr, splat(C(0))};
    C* const sums = buffers[l].skipped;
    for (const int64_t e : skips) {
      const Skipping from = one(e);
      for (int64_t at = i * row; at < (i + rows) * row; at += w)
        store(sums + at, fma(from.by, load(from.delta + at),
                             !gathered && e == *skips.first ? Vec<C>{} : load(sums + at)));
    }
    return {sums, splat(C(1))};
  }

  // What is fed back to rows i to i + rows through another activation, given those of its products.
  void gather(int64_t l, int64_t k, int64_t i, int64_t rows, const Vec<C>* c) const {
    const Buffers<P>& b = buffers[l];
    backpropagate_all<C>(args.node[l].through[k].before, b.source() + i * row,
                         b.activation(k) + i * row, c, k > 0, b.skipped + i * row, rows * width);
  }

  void constant_feedback(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    for (int64_t q = 0; q < rows * width; ++q)
      store(buffers[l].constant_feedback + i * row + q * w, c[q]);
  }

  // What is fed back to a node at a place, given the product there, which is the next to be read,
  // or none.
  template <Activation kind>
  static Vec<C> fed_back(const Buffers<P>& b, int64_t at, const Nonlinearity& before,
                         const Skipping& skipping, const Vec<C>*& feedback) {
    Vec<C> back{};
    if (feedback) {
      back = *feedback++;
      if constexpr (kind != Activation::identity)
        back = slope<C>(before, load(b.z + at), load(b.a + at)) * back;
    }
    return skipping.delta ? fma(skipping.by, load(skipping.delta + at), back) : back;
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
