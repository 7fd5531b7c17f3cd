#pragma once

#include "descent.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// How a stepper moves the elements of states or of errors.
template <class Layout>
struct Moves : Descent<Layout> {
  using Base = Descent<Layout>;
  using Base::w, Base::width, Base::args, Base::stepping, Base::rate;
  using typename Base::C, typename Base::P;

  // The rate of a node over the method's, for every sample.
  struct Rates {
    Vec<C> of[width];
  };
  Rates rates(const ChainNode& node, const Buffers<P>& b) const {
    Rates result;
    for (int v = 0; v < width; ++v) {
      const Vec<C> own = splat(static_cast<C>(node.relative_rate));
      result.of[v] = b.scale ? own * load(b.scale + v * w) : own;
    }
    return result;
  }

  // The next point of what moves of a node, at an element of vector v.
  Vec<C> moved(const Buffers<P>& b, int64_t at, int v, Vec<C> rate) const {
    const auto &s = stepping->s[v], &of = stepping->v[v];
    const Vec<C> g = rate * load(b.g + at);
    const Vec<C> from = load(b.s + at);
    if (args.method.kind >= StepperKind::adam)
      return b.x ? moved_along(b, at, v) : moved_by_adam(b, at, v);
    Vec<C> to = s.g * g + s.s * from, next = load(b.v + at) + (of.g * g + of.s * from);
    if (b.h) {
      const Vec<C> h = load(b.h + at);
      to += s.h * h;
      next += of.h * h;
      store(b.h + at, fma(stepping->keeps[v], g - h, h));
    }
    store(b.s + at, to);
    return next;
  }

  // The same of a state that constraints hold.
  Vec<C> moved_within(const ChainNode& node, const Buffers<P>& b, int64_t at, int v,
                      Vec<C> relative_rate) const {
    const Vec<C> x = kept(node, b, at, stepping->rate[v] * relative_rate);
    const Vec<C> change = x - load(b.v + at) + load(b.s + at);
    store(b.s + at, stepping->s[v].s * change);
    return x + stepping->v[v].s * change;
  }

  // Where constraints leave a step of a node's state by its gradient.
  Vec<C> kept(const ChainNode& node, const Buffers<P>& b, int64_t at, Vec<C> rate) const {
    const Vec<C> z = load(b.z + at);
    Vec<C> x = fnma(rate, load(b.g + at), z);
    if (node.shrink > 0) {
      const Vec<C> towards = splat(static_cast<C>(node.towards)), off = x - towards;
      const Vec<C> limit = rate * static_cast<C>(node.shrink);
      const Vec<C> nearer = off > C(0) ? x - limit : x + limit;
      x = (off > C(0) ? off : -off) <= limit ? towards : nearer; // NaN stays that
    }
    const Vec<C> low = splat(static_cast<C>(node.low)), high = splat(static_cast<C>(node.high));
    x = x < low ? low : x > high ? high : x;
    return b.known ? load(b.known + at) > C(0) ? z : x : x;
  }

  // The same along the way that s is.
  Vec<C> moved_along(const Buffers<P>& b, int64_t at, int v) const {
    const auto& of = stepping->v[v];
    const Vec<C> x = load(b.x + at), to = of.s > C(0) ? x + of.s * load(b.s + at) : x;
    return of.g > C(0) ? to : load(b.v + at);
  }

  // The same by moments of gradients, s and h.
  Vec<C> moved_by_adam(const Buffers<P>& b, int64_t at, int v) const {
    const Stepper& method = args.method;
    const auto& of = stepping->v[v];
    const auto decayed = [&](C* moment, double by, Vec<C> x) {
      const Vec<C> last = load(moment + at);
      const Vec<C> now = splat(static_cast<C>(by)) * last + splat(static_cast<C>(1 - by)) * x;
      store(moment + at, of.g > C(0) ? now : last);
      return now;
    };
    const Vec<C> g = load(b.g + at), mean = decayed(b.s, method.first, g);
    const Vec<C> root = square_root<C>(decayed(b.h, method.second, g * g));
    const Vec<C> step = of.g * mean / (root / of.h + static_cast<C>(method.third));
    const Vec<C> to = load(b.v + at);
    return of.g > C(0) ? to - step : to;
  }

  // Nothing has led to where what moves of a node begins, unless a run before has.
  void stay(const Buffers<P>& b, int64_t at) const {
    if (args.resume)
      return;
    store(b.s + at, Vec<C>{});
    if (b.h)
      store(b.h + at, Vec<C>{});
    if (b.x)
      store(b.x + at, Vec<C>{});
  }

  // The metric in which a method may move a node: the precision of its error.
  Vec<C> metric(const ChainNode& node, int64_t i, int v) const {
    const Vec<C> p = rate(node, i, v), one = splat(C(1));
    return p > C(0) ? p : one;
  }
  bool has_metric(const ChainNode& node) const {
    return args.method.errors && (node.law == Law::gaussian || node.whitened) &&
           (node.rate || node.sample_weights);
  }
  bool moves_by_metric(const ChainNode& node) const {
    return args.method.measures && has_metric(node);
  }

  bool follows(int64_t t) const {
    return pyromancy::follows(args, t);
  }

  // f(progress) of every sample of vector v
  template <class F>
  Vec<C> of_samples(int v, F f) const {
    double of[Layout::samples];
    for (int64_t i = 0; i < Layout::samples; ++i)
      of[i] = f(stepping->of[i]);
    return Layout::per_sample(of, v);
  }

  void prepare_motion() {
    const auto vector = [&](int v, auto weight) {
      return of_samples(v, [&](const Progress& p) { return weight(p.motion); });
    };
    for (int v = 0; v < width; ++v) {
      const auto weights = [&](auto of) {
        return typename Stepping<Layout>::Weights{vector(v, [&](auto& m) { return (m.*of).g; }),
                                                  vector(v, [&](auto& m) { return (m.*of).s; }),
                                                  vector(v, [&](auto& m) { return (m.*of).h; })};
      };
      stepping->s[v] = weights(&Motion::s);
      stepping->v[v] = weights(&Motion::v);
      stepping->keeps[v] = vector(v, [](auto& m) { return m.keeps; });
      stepping->rate[v] = vector(v, [](auto& m) { return m.rate; });
    }
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
