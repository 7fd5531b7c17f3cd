#pragma once

#include "../../rules/descent.h"
#include "feedback.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// Steps of plain gradient descent on the states.
template <class Layout>
struct Descent : Feedback<Layout> {
  using Base = Feedback<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::round, Base::rate,
      Base::weight, Base::unknown, Base::express, Base::activate_through;
  using typename Base::C, typename Base::P;

  // z <- z - lr (error - before' feedback) and the activation of that, for rows i to i + rows
  void update(int64_t l, int64_t i, int64_t rows, const Vec<C>* feedback, bool fresh) {
    const Activation kind = feedback ? args.node[l].before.kind : Activation::identity;
    with_kind(kind, [&](auto kind) { update_as<kind>(l, i, rows, feedback, fresh); });
    if (!buffers[l].next) // what is to come waits for its turn
      round(l, Input::activation, i, rows);
    if (!buffers[l].base)
      activate_through(l, i, rows);
  }

  template <Activation kind>
  __attribute__((noinline)) void update_as(int64_t l, int64_t i, int64_t rows,
                                           const Vec<C>* feedback, bool fresh) {
    const Nonlinearity before{kind, args.node[l].before.parameter};
    const Buffers<P> b = buffers[l];
    const auto skipping = this->skipping(l, i, rows);
    const ChainNode& node = args.node[l];
    const bool expressed = node.predicted && node.law == Law::expression;
    const bool from_prediction = b.mu && !node.full_precision && !expressed;
    if (expressed && b.mu)
      express(node, i, rows, b.z, b.mu, b.theta, false,
              [&](int64_t at, const OfLaw<C>& of) { store(b.error + at, of.pull); });
    C* const activations = !feedback || b.a == b.z || b.base ? nullptr : b.next ? b.next : b.a;
    const Vec<C> lr = splat(static_cast<C>(args.lr));
    const Vec<C> momentum = splat(static_cast<C>(args.momentum));
    const Vec<C> undamped = splat(static_cast<C>(1 - args.dampening));
    const bool nesterov = args.nesterov;
    int64_t at = i * row;
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < width; ++v, at += w) {
        Vec<C> z = load(b.z + at), g{};
        if (from_prediction) {
          g = of_law<C>(node, z, load(b.mu + at), rate(node, i + r, v), weight(node, v), false)
                  .pull;
        } else if (b.error) {
          g = load(b.error + at);
        }
        if (feedback) {
          Vec<C> back = *feedback++;
          if (b.constant_feedback)
            back = load(b.constant_feedback + at) - back;
          if constexpr (kind == Activation::identity)
            g -= back;
          else
            g = fnma(slope<C>(before, b.base ? load(b.base + at) : z, load(b.a + at)), back, g);
        }
        if (skipping.delta)
          g = fnma(skipping.by, load(skipping.delta + at), g);
        g = unknown(b, at, g);
        if (b.velocity) {
          Vec<C> velocity = fresh ? Vec<C>{} : load(b.velocity + at);
          g = accelerate<C>(g, velocity, momentum, undamped, nesterov, fresh);
          store(b.velocity + at, velocity);
        }
        z = descend<C>(z, g, lr);
        store(b.z + at, z);
        if (activations)
          store(activations + at, activate<C>(before, z));
      }
  }

  void swap_activations(int64_t l) {
    Buffers<P>& b = buffers[l];
    C* const a = b.a;
    b.a = b.next;
    b.next = a;
    round(l, Input::activation);
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
