#pragma once

#include "upward.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// Its sweep back: the gradients for what moves.
template <class Layout>
struct Downward : Upward<Layout> {
  using Base = Upward<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::round, Base::rate,
      Base::weight, Base::unknown, Base::metric, Base::moves_by_metric, Base::express;
  using typename Base::C, typename Base::P;

  // Keeps what a node whose error moves pushes its prediction with: what is fed back; or where its
  // state is held its pull, as a clamped one does.
  static void push(const Buffers<P>& b, int64_t at, Vec<C> pull, Vec<C> back) {
    const Vec<C> by = b.known ? load(b.known + at) > C(0) ? pull : back : back;
    store(b.delta + at, b.slope ? by * load(b.slope + at) : by);
  }

  // Rows i to i + rows of the gradient for what moves of node l, given those of the feedback.
  void backpropagate(int64_t l, int64_t i, int64_t rows, const Vec<C>* feedback) {
    const Activation kind = feedback ? args.node[l].before.kind : Activation::identity;
    with_kind(kind, [&](auto kind) { fall_as<kind>(l, i, rows, feedback); });
    if (args.method.errors)
      round(l, Input::delta, i, rows);
  }

  template <Activation kind>
  __attribute__((noinline)) void fall_as(int64_t l, int64_t i, int64_t rows,
                                         const Vec<C>* feedback) {
    const ChainNode& node = args.node[l];
    const Nonlinearity before{kind, node.before.parameter};
    const Buffers<P> b = buffers[l];
    const auto skipping = this->skipping(l, i, rows);
    const bool by_metric = moves_by_metric(node);
    const bool by_states = !args.method.errors || node.full_precision;
    const bool expressed = node.predicted && node.law == Law::expression && !by_states;
    if (expressed)
      express(node, i, rows, b.v, nullptr, b.theta, false,
              [&](int64_t at, const OfLaw<C>& of) { store(b.g + at, of.pull); });
    int64_t at = i * row;
    for (int64_t r = i; r < i + rows; ++r)
      for (int v = 0; v < width; ++v, at += w) {
        const Vec<C> back = this->template fed_back<kind>(b, at, before, skipping, feedback);
        Vec<C> g{};
        if (node.predicted && by_states)
          g = load(b.error + at);
        else if (expressed)
          g = load(b.g + at);
        else if (node.predicted)
          g = of_law<C>(node, load(b.v + at), Vec<C>{}, rate(node, r, v), weight(node, v), false)
                  .pull;
        if (args.method.errors && b.delta)
          push(b, at, g, back);
        g = unknown(b, at, g - back);
        if (args.method.errors && node.measure)
          store(b.residual + at, node.whitened ? back : g);
        store(b.g + at, by_metric ? g / metric(node, r, v) : g);
      }
    if (args.method.errors && node.measure)
      round(l, Input::residual, i, rows);
  }

  // Rows i to i + rows of the gradient for node l's error, where states move, likewise.
  void backpropagate_to_errors(int64_t l, int64_t i, int64_t rows, const Vec<C>* feedback) {
    const Activation kind = feedback ? args.node[l].before.kind : Activation::identity;
    with_kind(kind, [&](auto kind) { lead_as<kind>(l, i, rows, feedback); });
    round(l, Input::delta, i, rows);
  }

  template <Activation kind>
  __attribute__((noinline)) void lead_as(int64_t l, int64_t i, int64_t rows,
                                         const Vec<C>* feedback) {
    const ChainNode& node = args.node[l];
    const Nonlinearity before{kind, node.before.parameter};
    const Buffers<P> b = buffers[l];
    const auto skipping = this->skipping(l, i, rows);
    for (int64_t at = i * row; at < (i + rows) * row; at += w) {
      const Vec<C> back = this->template fed_back<kind>(b, at, before, skipping, feedback);
      const Vec<C> pull = load(b.error + at);
      push(b, at, pull, back);
      const Vec<C> g = unknown(b, at, pull - back);
      if (b.led) { // beside which its product with the error is wanted
        store(b.of_error + at, g * load(b.residual + at));
        store(b.residual + at, g);
      } else {
        store(b.of_error + at, g);
      }
    }
    if (b.led)
      round(l, Input::residual, i, rows);
  }

  void measure(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) const {
    const ChainNode& node = args.node[l];
    const Buffers<P>& b = buffers[l];
    for (int64_t q = 0; q < rows * width; ++q) {
      const int64_t at = i * row + q * w;
      const int v = static_cast<int>(q % width);
      if (b.led)
        store(b.led + at, c[q]);
      else
        store(b.g + at, load(b.v + at) - c[q] / metric(node, i + q / width, v));
    }
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
