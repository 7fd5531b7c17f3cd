#pragma once

#include "../../methods/noise.h"
#include "moves.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// A stepper's sweep from the first node to the last: what moves, moves, and the nodes behind it
// follow.
template <class Layout>
struct Upward : Moves<Layout> {
  using Base = Moves<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::first, Base::stepping,
      Base::round, Base::rate, Base::weight, Base::unknown, Base::moved, Base::moved_within,
      Base::follows, Base::stay, Base::settled, Base::express, Base::keeps, Base::keep_energy,
      Base::activate_source;
  using typename Base::C, typename Base::P, typename Base::Norms;

  // Noise of a step, for what moves of a node.
  void draw_noise(int64_t l, Rows wanted, int64_t t) const {
    const Buffers<P>& b = buffers[l];
    const auto seed = static_cast<uint64_t>(args.method.second);
    const auto node = static_cast<uint32_t>(args.node[l].ordinal),
               step = static_cast<uint32_t>(stepping->of[0].before + t);
    constexpr bool thin = Layout::samples == width; // neurons in the lanes
    Counts<C> lane;
    for (int j = 0; j < w; ++j)
      lane[j] = static_cast<uint32_t>(j);
    for (int v = 0; v < width; ++v) {
      const auto of_first = static_cast<uint32_t>(first + (thin ? v : v * w));
      const Counts<C> sample = of_first + (thin ? Counts<C>{} : lane);
      Vec<C> of[4];
      for (int64_t i = wanted.begin; i < wanted.end; ++i) {
        C* const to = b.h + i * row + v * w;
        if constexpr (thin) {
          const Counts<C> element = static_cast<uint32_t>(i * w) + lane;
          noise<C>(seed, sample, node, step, element >> 2, of);
          for (int j = 0; j < w; ++j)
            to[j] = of[element[j] & 3][j];
        } else {
          if (i == wanted.begin || i % 4 == 0)
            noise<C>(seed, sample, node, step, Counts<C>{} + static_cast<uint32_t>(i / 4), of);
          store(to, of[i % 4]);
        }
        store(to, unknown(b, i * row + v * w, load(to)));
      }
    }
  }

  void move(int64_t l, Rows wanted, int64_t t) {
    const ChainNode& node = args.node[l];
    const Buffers<P>& b = buffers[l];
    const auto rates = this->rates(node, b);
    const bool within = node.constrained && t > 0; // what is left of a run before, nothing holds
    for (int64_t i = wanted.begin; i < wanted.end; ++i)
      for (int v = 0; v < width; ++v) {
        const int64_t at = i * row + v * w;
        if (t == 0)
          stay(b, at);
        if (follows(t))
          store(b.v + at,
                within ? moved_within(node, b, at, v, rates.of[v]) : moved(b, at, v, rates.of[v]));
        if (node.whitened)
          keep_whitened(node, b, i, v, at);
      }
    if (node.whitened)
      round(l, Input::residual, wanted.begin, wanted.end - wanted.begin);
    else
      activate_source(l, wanted.begin, wanted.end - wanted.begin);
  }

  // What sweeps want of a whitened error at row i, of vector v.
  void keep_whitened(const ChainNode& node, const Buffers<P>& b, int64_t i, int v,
                     int64_t at) const {
    const Vec<C> error = load(b.v + at);
    store(b.residual + at, error);
    if (b.energy)
      store(b.energy + at, Gaussian::deviation(error, Vec<C>{}, rate(node, i, v)));
  }

  void whiten(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) const {
    const Buffers<P>& b = buffers[l];
    for (int64_t q = 0; q < rows * width; ++q) {
      const int64_t at = i * row + q * w;
      store(b.v + at, c[q]);
      if (b.energy)
        store(b.energy + at,
              Gaussian::deviation(c[q], Vec<C>{}, rate(args.node[l], i + q / width, q % width)));
    }
  }

  void spread(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    C* const z = buffers[l].z + i * row;
    for (int64_t q = 0; q < rows * width; ++q)
      store(z + q * w, load(z + q * w) + c[q]);
    activate_source(l, i, rows);
  }

  // Rows i to i + rows of node l's error and state, given those of the product that predicts it.
  void move_and_predict(int64_t l, int64_t i, int64_t rows, const Vec<C>* c, const Norms* norm,
                        int64_t t, bool learning) {
    with_kind(c ? args.node[l].after.kind : Activation::identity,
              [&](auto kind) { rise_as<kind>(l, i, rows, c, norm, t, learning); });
    if (args.node[l].full_precision)
      round(l, Input::residual, i, rows);
    activate_source(l, i, rows);
  }

  template <Activation kind>
  __attribute__((noinline)) void rise_as(int64_t l, int64_t i, int64_t rows, const Vec<C>* c,
                                         const Norms* norm, int64_t t, bool learning) {
    const ChainNode& node = args.node[l];
    const Nonlinearity after{kind, node.after.parameter};
    const Buffers<P> b = buffers[l];
    const bool learns = learning && errs_by_moving(args, node);
    const bool expressed = node.predicted && node.law == Law::expression && (learns || b.energy);
    const auto rates = this->rates(node, b);
    int64_t at = i * row;
    for (int64_t r = i; r < i + rows; ++r)
      for (int v = 0; v < width; ++v, at += w) {
        Vec<C> mu{}, slopes = splat(C(1));
        if (c) {
          const Vec<C> product = *c++ + Layout::constant(node.bias, r);
          mu = activate<C>(after, product);
          if (b.slope) {
            slopes = slope<C>(after, product, mu);
            store(b.slope + at, slopes);
          }
        } else if (b.mu) {
          mu = load(b.mu + at);
        }
        Vec<C> error{};
        if (follows(t)) {
          error = node.whitened ? Vec<C>{} : moved(b, at, v, rates.of[v]);
        } else if (args.resume) {
          error = load(b.z + at) - mu;
        } else if (!node.swept) {
          Vec<C> z = load(b.z + at);
          if (norm)
            z = settled(b, at, z, mu, Layout::constant(node.rounding, r) * norm->of[v]);
          error = z - mu;
          store(b.z + at, z);
        }
        if (follows(t) || node.swept) {
          Vec<C> z = mu + error;
          if (b.known &&
              follows(t)) { // what holds its state has the error that its prediction makes
            const Vec<C> held = load(b.z + at);
            const auto holds = load(b.known + at) > C(0);
            z = holds ? held : z;
            error = holds ? held - mu : error;
          }
          store(b.z + at, z);
        }
        if (!node.whitened)
          store(b.v + at, error);
        if (t == 0)
          stay(b, at);
        if (b.residual) {
          if (!node.whitened || !follows(t)) // `move` has left what makes the state of it there
            store(b.residual + at, error);
        } else if (expressed) {
          if (learns)
            store(b.delta + at, slopes);
        } else if (learns || b.energy) {
          const OfLaw<C> of =
              of_law<C>(node, error, Vec<C>{}, rate(node, r, v), weight(node, v), keeps(b));
          keep_energy(b, at, of);
          if (!learns)
            continue;
          store(b.error + at, of.pull);
          if (b.delta != b.error)
            store(b.delta + at, of.push * slopes);
        }
      }
    if (expressed)
      express(node, i, rows, b.v, nullptr, b.theta, keeps(b), [&](int64_t at, const OfLaw<C>& of) {
        keep_energy(b, at, of);
        if (!learns)
          return;
        store(b.error + at, of.pull);
        store(b.delta + at, of.push * load(b.delta + at));
      });
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
