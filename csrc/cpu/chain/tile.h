#pragma once

#include <cstring>

#include "judge.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

template <class C>
bool is_finite(const C* x, int64_t n) {
  Vec<C> nothing{}; // or NaN
  for_vectors<C>(n, [&](int64_t i, auto extent) {
    const Vec<C> v = load(x + i, extent);
    nothing += v - v;
  });
  bool result = true;
  for (int i = 0; i < kLanes<C>; ++i)
    result &= nothing[i] == C(0);
  return result;
}

// All of the work on a tile; here its beginning and its end.
template <class Layout>
struct Tile : Judge<Layout> {
  using Base = Judge<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::first, Base::stepping,
      Base::count, Base::load_samples, Base::store_samples, Base::fill, Base::round, Base::rate,
      Base::each_moving, Base::activate_source, Base::curvatures, Base::load_pairs,
      Base::store_pairs, Base::prepare_motion;
  using typename Base::C, typename Base::P;

  // Loads the states and what else there is.
  void begin() {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<P>& b = buffers[l];
      if (C* const to = node.in.count ? b.rest : b.mu; to && node.prior)
        load_samples(node.prior, node.prior_stride, node.n, to);
      if (!node.swept)
        load_samples(node.state, node.n, node.n, b.z);
      else if (!node.in.count)
        load_samples(node.prior, node.prior_stride, node.n, b.z);
      if (b.base && args.resume)
        load_samples(node.kept, node.n, node.n, b.base);
      if (b.known)
        load_samples(node.known, node.known_stride, node.n, b.known);
      if (b.theta)
        load_samples(node.theta, node.theta_stride, node.n, b.theta);
      if (b.velocity && args.resume)
        load_samples(node.velocity, node.n, node.n, b.velocity);
      else if (node.first_move > 0)
        fill(b.velocity, node.n, 0);
      if (node.first_error > 0) {
        fill(b.residual, node.n, 0);
        fill(b.energy, node.n, 0);
        fill(b.moment, node.n, 0);
        fill(b.error, node.n, 0);
        if (b.delta != b.error)
          fill(b.delta, node.n, 0);
      }
      if (!node.swept || !node.in.count)
        activate_source(l, 0, Layout::rows(node.n));
      if (gram_among(args, node.in))
        // the error buffer is free to hold P (z' - b), for this once
        for (int64_t i = 0; i < Layout::rows(node.n); ++i)
          for (int v = 0; v < width; ++v) {
            const int64_t at = i * row + v * w;
            const Vec<C> bias = Layout::constant(node.bias, i);
            store(b.error + at, Gaussian::push(load(b.z + at), bias, rate(node, i, v)));
          }
      for (const Input of : {Input::delta, Input::error, Input::residual})
        round(l, of);
    }
    if (args.has_stepper)
      for (Progress& p : stepping->of)
        p = pyromancy::begin(args.method);
    if (args.has_stepper && args.resume)
      resume();
    for (int64_t l = 0; l < args.nodes && args.has_stepper; ++l)
      if (const C* const of = static_cast<const C*>(args.node[l].sample_weights))
        for (int64_t s = 0; s < count() && args.node[l].free; ++s)
          stepping->of[s].certain &= of[first + s] > 0;
    for (int64_t s = count(); args.has_stepper && s < Layout::samples; ++s)
      stepping->of[s].done = true;
  }

  // What a run before has left.
  void resume() {
    double anew[Layout::samples] = {};
    for (int64_t s = 0; s < count(); ++s) {
      std::memcpy(&stepping->of[s], args.progress + (first + s) * kProgress, sizeof(Progress));
      anew[s] = stepping->of[s].converged;
      pyromancy::resume(stepping->of[s], args.method);
    }
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<P>& b = buffers[l];
      if (!node.free)
        continue;
      load_samples(node.velocity, node.n, node.n, b.x ? b.x : b.s);
      if (node.kept)
        load_samples(node.kept, node.n, node.n, b.h);
      fill(b.g, node.n, 0);
      fill(b.scale, 1, 1);
    }
    if (args.method.searches)
      load_pairs();
    each_moving([&](int64_t l, int64_t, int v, int64_t at) {
      const Vec<C> of = Layout::per_sample(anew, v);
      for (C* const kept : {buffers[l].s, buffers[l].h})
        if (kept)
          store(kept + at, of > C(0) ? Vec<C>{} : load(kept + at));
    });
    for (int64_t k = 0; k < args.method.pairs; ++k)
      for (int i = 0; i < Layout::samples; ++i)
        curvatures(k)[i] *= anew[i] == 0;
    prepare_motion();
  }

  // What another run goes on from.
  void suspend() const {
    for (int64_t l = 0; l < args.nodes; ++l)
      if (const ChainNode& node = args.node[l]; node.free) {
        store_samples(buffers[l].x ? buffers[l].x : buffers[l].s, node.n, node.velocity);
        store_samples(buffers[l].h, node.n, node.kept);
      }
    if (args.method.searches)
      store_pairs();
    for (int64_t s = 0; s < count(); ++s)
      std::memcpy(args.progress + (first + s) * kProgress, &stepping->of[s], sizeof(Progress));
  }

  // What learning wants.
  void keep_for_learning() {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<P>& b = buffers[l];
      store_samples(b.delta, node.n, node.delta);
      store_samples(b.source(), node.n, node.source);
      store_samples(b.moment, node.n, node.moment);
      for (const int64_t e : node.out)
        store_samples(b.activation(args.edge[e].through), node.n, args.edge[e].activated);
    }
  }

  void end() {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      if (!node.free || !args.moves)
        continue;
      store_samples(buffers[l].z, node.n, node.state);
      if (!is_finite(static_cast<const C*>(node.state) + first * node.n, count() * node.n))
        __atomic_store_n(args.diverged, 1, __ATOMIC_RELAXED); // other tiles may, too
      if (buffers[l].base && !args.resume)
        store_samples(buffers[l].base, node.n, node.kept);
      if (args.steps > 0 &&
          !args.has_stepper) // velocities that are not resumed start with the first
        store_samples(buffers[l].velocity, node.n, node.velocity);
    }
    if (args.has_stepper && args.progress)
      suspend();
    if (args.has_stepper && args.outcome)
      for (int64_t s = 0; s < count(); ++s) {
        C* const to = static_cast<C*>(args.outcome) + 2 * (first + s);
        to[0] = static_cast<C>(stepping->of[s].taken - stepping->of[s].before);
        to[1] = stepping->of[s].converged;
      }
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
