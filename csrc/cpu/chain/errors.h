#pragma once

#include <array>
#include <cmath>

#include "interpret.h"
#include "prediction.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// How far states are from their predictions, as the laws have it, and their energies.
template <class Layout>
struct Errors : Prediction<Layout> {
  using Base = Prediction<Layout>;
  using Base::w, Base::width, Base::row, Base::args, Base::buffers, Base::first, Base::count,
      Base::round, Base::rate, Base::weight, Base::weighted, Base::settled, Base::predict,
      Base::activate_source;
  using typename Base::C, typename Base::P, typename Base::Norms;

  // The error for a prediction that does not change.
  void err_of_constant(int64_t l, Rows wanted) {
    const ChainNode& node = args.node[l];
    if (is_rowwise(node.law)) // `normalize` finds it
      return;
    const Buffers<P>& b = buffers[l];
    const auto keep = [&](int64_t at, const OfLaw<C>& of) {
      if (b.error)
        store(b.error + at, of.pull);
      if (b.delta != b.error) // of an activation it would come by the product
        store(b.delta + at, of.push);
      keep_energy(b, at, of);
    };
    const bool expressed = node.law == Law::expression;
    if (expressed)
      express(node, wanted.begin, wanted.end - wanted.begin, b.z, b.mu, b.theta, keeps(b), keep);
    for (int64_t i = wanted.begin; i < wanted.end && !expressed; ++i)
      for (int v = 0; v < width; ++v) {
        const int64_t at = i * row + v * w;
        const Vec<C> z = load(b.z + at), mu = load(b.mu + at);
        if (b.residual)
          store(b.residual + at, z - mu);
        else
          keep(at, of_law<C>(node, z, mu, rate(node, i, v), weight(node, v), keeps(b)));
      }
    round(l, node.full_precision ? Input::residual : Input::delta, wanted.begin,
          wanted.end - wanted.begin);
  }

  // Rows i to i + rows of node l's error, given those of the product that predicts it: one pass,
  // compiled for every activation.
  void find_error(int64_t l, int64_t i, int64_t rows, const Vec<C>* c, const Norms* norm) {
    if (is_rowwise(args.node[l].law)) // logits, until `normalize` has seen all of them
      return predict(l, i, rows, c, args.node[l].bias, buffers[l].error);
    with_kind(args.node[l].after.kind,
              [&](auto kind) { find_error_as<kind>(l, i, rows, c, norm); });
    round(l, args.node[l].full_precision ? Input::residual : Input::delta, i, rows);
    if (norm) // states may have settled
      activate_source(l, i, rows);
  }

  template <Activation kind>
  __attribute__((noinline)) void find_error_as(int64_t l, int64_t i, int64_t rows, const Vec<C>* c,
                                               const Norms* norm) {
    const ChainNode& node = args.node[l];
    const Nonlinearity after{kind, node.after.parameter};
    const Buffers<P> b = buffers[l];
    const void* const bias = node.bias;
    const bool full = static_cast<bool>(node.full_precision);
    const bool expressed = node.law == Law::expression;
    const auto each = [&](auto f) { // f(row, vector, where they are, product)
      int64_t at = i * row;
      for (int64_t r = i; r < i + rows; ++r)
        for (int v = 0; v < width; ++v, at += w)
          f(r, v, at, *c++ + Layout::constant(bias, r));
    };
    // What nearly all nodes are spares them questions at every element.
    if (node.law == Law::gaussian && !node.rate && !node.sample_weights && !full && !norm &&
        !b.energy && !b.moment)
      return each([&](int64_t, int, int64_t at, Vec<C> product) {
        const Vec<C> prediction = activate<C>(after, product);
        const Vec<C> z = load(b.z + at), pull = Gaussian::pull(z, prediction, splat(C(1)));
        if (b.delta != b.error) {
          const Vec<C> slopes = slope<C>(after, product, prediction);
          store(b.delta + at, pull * slopes);
          if (b.slope)
            store(b.slope + at, slopes);
        }
        store(b.error + at, pull);
      });
    each([&](int64_t r, int v, int64_t at, Vec<C> product) {
      const Vec<C> prediction = activate<C>(after, product);
      if (norm)
        store(b.z + at, settled(b, at, load(b.z + at), prediction,
                                Layout::constant(node.rounding, r) * norm->of[v]));
      const Vec<C> z = load(b.z + at), slopes = slope<C>(after, product, prediction);
      if (b.slope)
        store(b.slope + at, slopes);
      if (full) {
        store(b.residual + at, z - prediction);
        return;
      }
      if (expressed) {
        store(b.error + at, prediction);
        store(b.delta + at, slopes);
        return;
      }
      const OfLaw<C> of =
          of_law<C>(node, z, prediction, rate(node, r, v), weight(node, v), keeps(b));
      if (b.delta != b.error)
        store(b.delta + at, of.push * slopes);
      store(b.error + at, of.pull);
      keep_energy(b, at, of);
    });
    if (expressed)
      express(node, i, rows, b.z, b.error, b.theta, keeps(b), [&](int64_t at, const OfLaw<C>& of) {
        store(b.delta + at, of.push * load(b.delta + at));
        store(b.error + at, of.pull);
        keep_energy(b, at, of);
      });
  }

  // f(where, what an expression makes) of rows i to i + rows of states z, predictions mu and
  // thetas, null being 0: all as a node's buffers are.
  template <class F>
  __attribute__((noinline)) void express(const ChainNode& node, int64_t i, int64_t rows, const C* z,
                                         const C* mu, const C* theta, bool energy, F f) const {
    Interpreter<C> interpreter(*node.expression, energy);
    const int64_t end = (i + rows) * width;
    for (int64_t q = i * width; q < end; q += kBlock) {
      const int vectors = static_cast<int>(smaller(kBlock, end - q));
      interpreter.run(z + q * w, mu ? mu + q * w : nullptr, theta ? theta + q * w : nullptr,
                      vectors);
      for (int j = 0; j < vectors; ++j) {
        const Vec<C> p = rate(node, (q + j) / width, static_cast<int>((q + j) % width));
        // of what has no weight, as what lies beyond the last element, nothing may be infinite
        const auto weigh = [&](Vec<C> x) { return p == C(0) ? Vec<C>{} : p * x; };
        const OfLaw<C> of = interpreter.result(j);
        f((q + j) * w,
          OfLaw<C>{weigh(of.pull), weigh(of.push), weigh(of.deviation), weigh(of.moment)});
      }
    }
  }

  // What is recorded of an element's energy, and learned from.
  static void keep_energy(const Buffers<P>& b, int64_t at, const OfLaw<C>& of) {
    if (b.energy)
      store(b.energy + at, of.deviation);
    if (b.moment)
      store(b.moment + at, of.moment);
  }
  static bool keeps(const Buffers<P>& b) {
    return b.energy || b.moment;
  }

  void apply_precision(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    const Buffers<P>& b = buffers[l];
    for (int64_t q = 0; q < rows * width; ++q) {
      const int64_t at = i * row + q * w;
      const Vec<C> error = weighted(args.node[l], c[q], static_cast<int>(q % width));
      store(b.error + at, error);
      if (b.energy)
        store(b.energy + at, C(0.5) * (load(b.residual + at) * error));
      if (b.delta != b.error)
        store(b.delta + at, b.slope ? error * load(b.slope + at) : error);
    }
    round(l, Input::delta, i, rows);
  }

  // The error of a categorical node, whose logits `find_error` has left in its place, or do not
  // change.
  void normalize(int64_t l) {
    const ChainNode& node = args.node[l];
    const Buffers<P>& b = buffers[l];
    const C* const logits = b.mu ? b.mu : b.error;
    Vec<C> greatest[width];
    for (int v = 0; v < width; ++v)
      greatest[v] = Layout::greatest(logits, node.n, v);
    double sums[2][Layout::samples] = {}; // of e^x, and of z
    Layout::template sums<2>(node.n, sums, [&](int64_t, int v, int64_t at) {
      const Vec<C> x = load(logits + at) - greatest[v], e = exp<C>(x);
      if (b.energy)
        store(b.energy + at, x);
      store(b.error + at, e);
      return std::array<Vec<C>, 2>{{e, load(b.z + at)}};
    });
    double logs[Layout::samples] = {};
    for (int s = 0; s < Layout::samples; ++s) {
      if (b.energy)
        logs[s] = std::log(sums[0][s]);
      sums[1][s] /= sums[0][s];
    }
    for (int v = 0; v < width; ++v) {
      const Vec<C> share = Layout::per_sample(sums[1], v), log = Layout::per_sample(logs, v);
      for (int64_t i = 0; i < Layout::rows(node.n); ++i) {
        const int64_t at = i * row + v * w;
        const Vec<C> z = load(b.z + at), p = rate(node, i, v);
        if (b.energy)
          store(b.energy + at, Categorical::deviation(z, load(b.energy + at), log, p));
        store(b.error + at, Categorical::push(z, load(b.error + at), share, p));
      }
    }
    round(l, Input::delta);
  }

  // Energies per sample, without their normalizers.
  void record(int64_t t) {
    for (int64_t l = 0; l < args.nodes; ++l) {
      C* out = static_cast<C*>(args.energies) + (t * args.nodes + l) * args.batch + first;
      double total[Layout::samples] = {};
      if (args.node[l].predicted)
        Layout::sum(buffers[l].energy, args.node[l].n, total, [](auto x) { return x; });
      for (int64_t r = 0; r < count(); ++r)
        out[r] = static_cast<C>(total[r]);
    }
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
