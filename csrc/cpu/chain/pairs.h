#pragma once

#include <algorithm>
#include <array>

#include "downward.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// The pairs of L-BFGS, ways to points and the changes of the gradient on them, and the ways that
// the recursion of two loops makes of these.
template <class Layout>
struct Pairs : Downward<Layout> {
  using Base = Downward<Layout>;
  using Base::width, Base::row, Base::args, Base::buffers, Base::first, Base::stepping, Base::count,
      Base::load_samples, Base::fill, Base::each_moving, Base::metric, Base::has_metric;
  using typename Base::C, typename Base::P;

  // Pair k of node l: the way to a point, or `after` all those, the change of the gradient on it.
  C* pair(int64_t l, int64_t k, bool after = false) const {
    const int64_t place = k + (after ? args.method.pairs : 0);
    return buffers[l].pairs + place * Layout::rows(args.node[l].n) * row;
  }
  // One over the product of the two, of samples; 0 where there is no such pair.
  double* curvatures(int64_t k) const {
    return reinterpret_cast<double*>(stepping + 1) + k * Layout::samples;
  }

  // Moves the pairs of some samples one place on, the last one to the first.
  void rotate_pairs(const double (&whose)[Layout::samples]) const {
    const int64_t pairs = args.method.pairs;
    each_moving([&](int64_t l, int64_t, int v, int64_t at) {
      const Vec<C> of = Layout::per_sample(whose, v);
      for (const bool after : {false, true}) {
        Vec<C> before = load(pair(l, pairs - 1, after) + at);
        for (int64_t k = 0; k < pairs; ++k) {
          const Vec<C> mine = load(pair(l, k, after) + at);
          store(pair(l, k, after) + at, of > C(0) ? before : mine);
          before = mine;
        }
      }
    });
    for (int i = 0; i < Layout::samples; ++i)
      for (int64_t k = pairs - 1; whose[i] > 0 && k > 0; --k)
        std::swap(curvatures(k)[i], curvatures(k - 1)[i]);
  }

  // Adds the pair of the last step to those of the samples that it tells a curvature of, in place
  // k.
  void add_pair(int64_t k) const {
    double live[Layout::samples], paired[Layout::samples], kept[Layout::samples];
    bool all = true;
    for (int i = 0; i < Layout::samples; ++i) {
      const Progress& p = stepping->of[i];
      live[i] = !p.done;
      paired[i] = !p.done && p.paired;
      kept[i] = live[i] - paired[i];
      all &= kept[i] == 0;
    }
    if (!all)
      rotate_pairs(kept);
    for (int i = 0; i < Layout::samples; ++i)
      if (paired[i] > 0)
        curvatures(k)[i] = 1 / stepping->of[i].ss;
    each_moving([&](int64_t l, int64_t, int v, int64_t at) {
      const Buffers<P>& b = buffers[l];
      const Vec<C> new_ = Layout::per_sample(paired, v), moves = Layout::per_sample(live, v);
      const Vec<C> to = load(b.v + at), x = load(b.x + at), g = load(b.g + at), h = load(b.h + at);
      C *const way = pair(l, k) + at, *const change = pair(l, k, true) + at;
      store(way, new_ > C(0) ? to - x : load(way));
      store(change, new_ > C(0) ? g - h : load(change));
      store(b.x + at, moves > C(0) ? to : x);
      store(b.h + at, moves > C(0) ? g : h);
    });
  }

  // The way of a step: the recursion of two loops over pairs, the last of which is in place k.
  void set_out(int64_t step) {
    const int64_t pairs = args.method.pairs, last = step % pairs;
    if (step == 0 && !args.resume)
      forget_pairs();
    add_pair(last);
    const auto place = [&](int64_t j) { return (last - j + pairs) % pairs; }; // of the j-th latest
    double factor[kMostPairs][Layout::samples], product[2][Layout::samples];
    // s <- of(s, ...), and the products of what with(s, ...) tells
    const auto pass = [&](auto of, auto with) {
      for (auto& x : product)
        std::fill(x, x + Layout::samples, 0.0);
      for (int64_t l = 0; l < args.nodes; ++l) {
        if (!args.node[l].free)
          continue;
        const Buffers<P>& b = buffers[l];
        const bool has_metric = this->has_metric(args.node[l]);
        Layout::template sums<2>(args.node[l].n, product, [&](int64_t i, int v, int64_t at) {
          const Vec<C> s = of(l, v, at, load(b.s + at));
          store(b.s + at, s);
          std::array<Vec<C>, 2> x = with(l, at, s);
          if (has_metric)
            for (Vec<C>& y : x)
              y = metric(args.node[l], i, v) * y;
          return x;
        });
      }
    };
    const auto with_pair = [&](int64_t j, bool after) {
      return [this, k = place(j), after](int64_t l, int64_t at, Vec<C> s) {
        return std::array<Vec<C>, 2>{{load(pair(l, k, after) + at) * s, Vec<C>{}}};
      };
    };
    const auto with_gradient = [&](int64_t l, int64_t at, Vec<C> s) {
      const Vec<C> g = load(buffers[l].g + at);
      return std::array<Vec<C>, 2>{{g * s, g * g}};
    };
    Vec<C> by[width];
    const auto set = [&](const double (&of)[Layout::samples]) {
      for (int v = 0; v < width; ++v)
        by[v] = Layout::per_sample(of, v);
    };
    pass([&](int64_t l, int, int64_t at, Vec<C>) { return load(buffers[l].g + at); },
         with_pair(0, false));
    for (int64_t j = 0; j < pairs; ++j) {
      for (int i = 0; i < Layout::samples; ++i)
        factor[j][i] = curvatures(place(j))[i] * product[0][i];
      set(factor[j]);
      const auto less = [&](int64_t l, int v, int64_t at, Vec<C> s) {
        return s - by[v] * load(pair(l, place(j), true) + at);
      };
      if (j + 1 < pairs)
        pass(less, with_pair(j + 1, false));
      else
        pass(less, with_gradient); // whose products are not wanted
    }
    double scale[Layout::samples], more[Layout::samples];
    for (int i = 0; i < Layout::samples; ++i)
      scale[i] = stepping->of[i].scale;
    set(scale);
    pass([&](int64_t, int v, int64_t, Vec<C> s) { return by[v] * s; }, with_pair(pairs - 1, true));
    for (int64_t j = pairs - 1; j >= 0; --j) {
      for (int i = 0; i < Layout::samples; ++i)
        more[i] = factor[j][i] - curvatures(place(j))[i] * product[0][i];
      set(more);
      const auto plus = [&](int64_t l, int v, int64_t at, Vec<C> s) {
        return s + by[v] * load(pair(l, place(j)) + at);
      };
      if (j > 0)
        pass(plus, with_pair(j - 1, true));
      else
        pass(plus, with_gradient);
    }
    double upwards[Layout::samples];
    for (int i = 0; i < Layout::samples; ++i) {
      upwards[i] = !(product[0][i] > 0); // by rounding, or where the energy bends down
      const double slope = upwards[i] > 0 ? -Lbfgs::kFirst * product[1][i] : -product[0][i];
      if (!stepping->of[i].done)
        Lbfgs::set_out(stepping->of[i], slope);
    }
    set(upwards);
    each_moving([&](int64_t l, int64_t, int v, int64_t at) {
      const Buffers<P>& b = buffers[l];
      const Vec<C> along = splat(static_cast<C>(-Lbfgs::kFirst)) * load(b.g + at);
      store(b.s + at, by[v] > C(0) ? along : -load(b.s + at));
    });
  }

  void forget_pairs() const {
    for (int64_t k = 0; k < args.method.pairs; ++k) {
      std::fill(curvatures(k), curvatures(k) + Layout::samples, 0.0);
      for (int64_t l = 0; l < args.nodes; ++l)
        for (const bool after : {false, true})
          if (args.node[l].free)
            fill(pair(l, k, after), args.node[l].n, 0);
    }
  }

  // What goes on of the pairs, the latest one first.
  template <class F>
  void each_kept(int64_t latest, F f) const {
    const int64_t pairs = args.method.pairs;
    for (int64_t l = 0; l < args.nodes; ++l)
      for (int64_t j = 0; args.node[l].free && j < 2 * pairs; ++j) {
        const int64_t k = ((latest - j) % pairs + pairs) % pairs, n = args.node[l].n;
        f(pair(l, k, j >= pairs), static_cast<C*>(args.node[l].kept) + (1 + j) * args.batch * n, n);
      }
  }
  void load_pairs() {
    const int64_t pairs = args.method.pairs;
    each_kept(pairs - 1, [&](C* to, const C* from, int64_t n) { load_samples(from, n, n, to); });
    for (int64_t k = 0; k < pairs; ++k) {
      double products[1][Layout::samples] = {};
      for (int64_t l = 0; l < args.nodes; ++l)
        if (const ChainNode& node = args.node[l]; node.free)
          Layout::template sums<1>(node.n, products, [&](int64_t i, int v, int64_t at) {
            const Vec<C> p = has_metric(node) ? metric(node, i, v) : splat(C(1));
            return std::array<Vec<C>, 1>{{p * load(pair(l, k) + at) * load(pair(l, k, true) + at)}};
          });
      for (int i = 0; i < Layout::samples; ++i)
        curvatures(k)[i] = products[0][i] > 0 ? 1 / products[0][i] : 0;
    }
  }
  void store_pairs() const {
    const int64_t pairs = args.method.pairs;
    int64_t most = 0;
    const auto steps = [&](int64_t s) { // after which a sample has gone somewhere
      const Progress& p = stepping->of[s];
      return p.taken - p.before - p.done;
    };
    for (int64_t s = 0; s < count(); ++s)
      most = std::max(most, steps(s));
    for (int64_t t = 1; t < pairs; ++t) { // that those who have stopped before have missed
      double whose[Layout::samples] = {};
      bool any = false;
      for (int64_t s = 0; s < count(); ++s) {
        whose[s] = (most - steps(s)) % pairs >= t;
        any |= whose[s] > 0;
      }
      if (any)
        rotate_pairs(whose);
    }
    for (int64_t k = 0; k < pairs; ++k)
      each_moving([&](int64_t l, int64_t, int v, int64_t at) { // of none there is nothing
        C* const way = pair(l, k) + at;
        store(way, Layout::per_sample(curvatures(k), v) > C(0) ? load(way) : Vec<C>{});
      });
    each_kept(most + pairs - 1, [&](const C* from, C* to, int64_t n) {
      Layout::store_samples(from, n, count(), to + first * n);
    });
  }
};

} // namespace
} // namespace pyromancy::PYROMANCY_ISA
