#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "pairs.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// What a stepper decides after a sweep, sample by sample, by sums over all elements.
template <class Layout>
struct Judge : Pairs<Layout> {
  using Base = Pairs<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::stepping, Base::rate,
      Base::metric, Base::has_metric, Base::kept, Base::of_samples, Base::prepare_motion,
      Base::curvatures, Base::set_out;
  using typename Base::C, typename Base::P;

  // What is decided after a sweep.
  void judge(int64_t t) {
    const int64_t sweeps = args.method.sweeps;
    if (t % sweeps == 0)
      judge_first(t / sweeps);
    else
      compare();
    prepare_motion();
  }

  void judge_first(int64_t step) {
    double sums[6][Layout::samples] = {};
    Stepper method = args.method;
    if (args.factors)
      method.factor = args.factors[step];
    for (int64_t l = 0; l < args.nodes; ++l)
      if (buffers[l].scale)
        scale(l);
    if (method.looks)
      look(method.factor * method.lr, sums);
    double of_errors[2][Layout::samples] = {};
    const bool leads = pyromancy::leads(args, step * args.method.sweeps);
    if (leads)
      look_at_errors(of_errors);
    for (int64_t i = 0; i < Layout::samples; ++i)
      pyromancy::judge(stepping->of[i], method,
                       {sums[0][i], sums[1][i], sums[2][i], sums[3][i], sums[4][i], sums[5][i],
                        sums[4][i], leads || method.errors, leads ? of_errors[0][i] : sums[1][i],
                        leads ? of_errors[1][i] : sums[3][i]},
                       step + 1 == args.steps);
    if (args.method.looks && args.method.keeps)
      drop_lost(sums[1]);
    if (args.method.searches)
      set_out(step);
  }

  // Energies of all samples, and what else `Found` has of what moves of a node, at a rate.
  void look(double lr, double (&sums)[6][Layout::samples]) const {
    const bool measures = args.method.measures;
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<P>& b = buffers[l];
      if (node.predicted && b.energy)
        Layout::template sums<1>(node.n, sums, [&](int64_t, int, int64_t at) {
          return std::array<Vec<C>, 1>{{load(b.energy + at)}};
        });
      if (!node.free)
        continue;
      const bool has_metric = this->has_metric(node), adds = node.predicted && !b.energy;
      const auto rates = this->rates(node, b);
      Layout::template sums<6>(node.n, sums, [&](int64_t i, int v, int64_t at) {
        std::array<Vec<C>, 6> x{};
        const Vec<C> to = load(b.v + at), g = load(b.g + at);
        const Vec<C> s = b.x ? to - load(b.x + at) : load(b.s + at);
        const Vec<C> p = has_metric ? metric(node, i, v) : splat(C(1));
        const Vec<C> raw = measures ? p * g : g;
        x[0] =
            adds ? Gaussian::deviation(to, Vec<C>{}, has_metric ? rate(node, i, v) : p) : Vec<C>{};
        x[1] = measures || !has_metric ? raw * g : raw * g / p;
        x[2] = raw * s;
        x[3] = raw * to;
        x[4] = raw * g * rates.of[v];
        if (b.led && args.method.errors) {
          const Vec<C> led = load(b.led + at);
          x[1] = led * (led / metric(node, i, v));
        }
        if (args.constrained) {
          const Vec<C> rate = static_cast<C>(lr) * rates.of[v];
          const Vec<C> by = node.constrained ? (to - kept(node, b, at, rate)) / rate : g;
          const Vec<C> led = rate > C(0) ? by : Vec<C>{}, off = to - static_cast<C>(node.towards);
          x[1] = led * led;
          x[2] = led * s;
          x[5] = static_cast<C>(node.shrink) * (off > C(0) ? off : -off);
          x[4] = led * led * rates.of[v];
        }
        if (measures) {
          const Vec<C> y = g - load(b.h + at), py = p * y;
          x[4] = py * s;
          x[5] = py * y;
        }
        return x;
      });
    }
  }

  // Products of these gradients, with themselves over precisions and with the errors.
  void look_at_errors(double (&sums)[2][Layout::samples]) const {
    for (int64_t l = 0; l < args.nodes; ++l)
      if (const Buffers<P>& b = buffers[l]; args.node[l].free)
        Layout::template sums<2>(args.node[l].n, sums, [&](int64_t i, int v, int64_t at) {
          const Vec<C> g = load(b.of_error + at), p = metric(args.node[l], i, v);
          if (b.led) {
            const Vec<C> led = load(b.led + at);
            return std::array<Vec<C>, 2>{{led * (led / p), g}};
          }
          const Vec<C> over = g / p;
          return std::array<Vec<C>, 2>{{g * over, load(b.error + at) * over}};
        });
  }

  // How far down the gradients of a node go.
  void scale(int64_t l) {
    const Buffers<P>& b = buffers[l];
    double squares[1][Layout::samples] = {};
    Layout::template sums<1>(args.node[l].n, squares, [&](int64_t, int, int64_t at) {
      return std::array<Vec<C>, 1>{{load(b.g + at) * load(b.g + at)}};
    });
    for (double& x : squares[0])
      x = args.max_norm / std::max(std::sqrt(x), args.max_norm);
    for (int v = 0; v < width; ++v)
      store(b.scale + v * w, Layout::per_sample(squares[0], v));
  }

  // Where a gradient is not finite nothing goes by it: 0 times that is not 0.
  void drop_lost(const double* squares) {
    double kept[Layout::samples];
    bool all = true;
    for (int64_t i = 0; i < Layout::samples; ++i) {
      kept[i] = std::isfinite(squares[i]);
      all &= kept[i] > 0;
    }
    for (int64_t l = 0; l < args.nodes && !all; ++l)
      if (const Buffers<P>& b = buffers[l]; args.node[l].free)
        for (int64_t i = 0; i < Layout::rows(args.node[l].n); ++i)
          for (int v = 0; v < width; ++v) {
            const int64_t at = i * row + v * w;
            store(b.g + at, Layout::per_sample(kept, v) > C(0) ? load(b.g + at) : Vec<C>{});
          }
  }

  // How much a step's second sweep makes of a difference.
  void compare() {
    double sums[1][Layout::samples] = {};
    int64_t elements = 0;
    for (int64_t l = 0; l < args.nodes && args.method.compares; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<P>& b = buffers[l];
      if (!node.free)
        continue;
      elements += node.n;
      Vec<C> length[width];
      for (int v = 0; v < width; ++v)
        length[v] = of_samples(v, [](const Progress& p) { return p.length; });
      Layout::template sums<1>(node.n, sums, [&](int64_t, int v, int64_t at) {
        return std::array<Vec<C>, 1>{{Heun::share(
            load(b.v + at), load(b.s + at), load(b.g + at), load(b.h + at), length[v],
            splat(static_cast<C>(args.method.first)), splat(static_cast<C>(args.method.second)))}};
      });
    }
    for (int64_t i = 0; i < Layout::samples; ++i)
      correct(stepping->of[i], args.method, sums[0][i] / static_cast<double>(elements));
    if (args.method.compares)
      drop_lost(sums[0]);
  }

  void search() {
    double energy[1][Layout::samples] = {};
    sum_energies(energy);
    for (int i = 0; i < Layout::samples; ++i)
      if (Lbfgs::search(stepping->of[i], args.method, energy[0][i]))
        for (int64_t k = 0; k < args.method.pairs; ++k)
          curvatures(k)[i] = 0;
    prepare_motion();
  }

  bool settled() const {
    for (const Progress& p : stepping->of)
      if (!p.done && !p.settled)
        return false;
    return true;
  }

  // Of all nodes, where a sweep upwards has led.
  void sum_energies(double (&energy)[1][Layout::samples]) const {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<P>& b = buffers[l];
      if (node.predicted)
        Layout::template sums<1>(node.n, energy, [&](int64_t i, int v, int64_t at) {
          return std::array<Vec<C>, 1>{
              {b.energy ? load(b.energy + at)
                        : Gaussian::deviation(load(b.v + at), Vec<C>{}, rate(node, i, v))}};
        });
    }
  }

  void accept() {
    double energy[1][Layout::samples] = {};
    sum_energies(energy);
    for (int64_t i = 0; i < Layout::samples; ++i)
      pyromancy::accept(stepping->of[i], energy[0][i]);
    prepare_motion();
  }

  bool done() const {
    for (const Progress& p : stepping->of)
      if (!p.done)
        return false;
    return true;
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
