#include "chain_kernel.h"

#include <array>
#include <cstring>

#include "../activate.h"
#include "../laws/laws.h"
#include "../methods/noise.h"
#include "../rules/rules.h"
#include "interpret.h"
#include "tiles.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// f(kind), with the kind a constant of the compiler's
template <class F>
void with_kind(Activation kind, F f) {
#define PYROMANCY_KIND(name, value, slope)                                                         \
  case Activation::name:                                                                           \
    return f(std::integral_constant<Activation, Activation::name>{});
  switch (kind) { PYROMANCY_ACTIVATIONS(PYROMANCY_KIND) }
#undef PYROMANCY_KIND
}

// y = f(x), for so many vectors
template <class C>
__attribute__((noinline)) void activate_all(Nonlinearity f, const C* x, C* y, int64_t vectors) {
  with_kind(f.kind, [&](auto kind) {
    if (kind != Activation::identity || x != y)
      for (int64_t q = 0; q < vectors; ++q)
        store(y + q * kLanes<C>, activate<C>({kind, f.parameter}, load(x + q * kLanes<C>)));
  });
}

// to = f'(z) c, or that is added to it, where a = f(z), for so many vectors
template <class C>
__attribute__((noinline)) void backpropagate_all(Nonlinearity f, const C* z, const C* a,
                                                 const Vec<C>* c, bool add, C* to,
                                                 int64_t vectors) {
  with_kind(f.kind, [&](auto kind) {
    constexpr int w = kLanes<C>;
    const Nonlinearity of{kind, f.parameter};
    for (int64_t q = 0; q < vectors; ++q)
      store(to + q * w, fma(slope<C>(of, load(z + q * w), load(a + q * w)), c[q],
                            add ? load(to + q * w) : Vec<C>{}));
  });
}

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

template <class C, class L>
PYROMANCY_INLINE OfLaw<C> of_formulas(L law, Vec<C> z, Vec<C> mu, Vec<C> p, Vec<C> weight,
                                      bool energy) {
  OfLaw<C> x{law.pull(z, mu, p, weight), law.push(z, mu, p, weight), {}, {}};
  if (energy) {
    x.deviation = law.deviation(z, mu, p, weight);
    x.moment = law.moment(z, mu, p, weight);
  }
  return x;
}

// Once for all that asks, which is compiled for every activation and kind of tile.
template <class C>
__attribute__((noinline)) OfLaw<C> of_any_law(Law law, double parameter, Vec<C> z, Vec<C> mu,
                                              Vec<C> p, Vec<C> weight, bool energy) {
  OfLaw<C> x;
  with_formulas(law, parameter,
                [&](auto formulas) { x = of_formulas<C>(formulas, z, mu, p, weight, energy); });
  return x;
}

template <class C>
PYROMANCY_INLINE OfLaw<C> of_law(const ChainNode& node, Vec<C> z, Vec<C> mu, Vec<C> p,
                                 Vec<C> weight, bool energy) {
  return node.law == Law::gaussian
             ? of_formulas<C>(Gaussian{}, z, mu, p, weight, energy)
             : of_any_law<C>(node.law, node.law_parameter, z, mu, p, weight, energy);
}

// What products may multiply a matrix with.
enum class Input : int { activation, delta, error, residual };
constexpr int kInputs = 4;

// What a tile keeps for a node, each [rows(n), width vectors]; null where the chain never needs it.
template <class P>
struct Buffers {
  using C = typename P::Number;

  C* z;
  C* base;     // the first z, where predictions are fixed
  C* a;        // before(z), or before(base); the same itself where that is the identity
  C* through;  // other activations, one behind the other
  C* next;     // the activations to come, where the update still reads a
  C* mu;       // a prediction that does not change
  C* rest;     // what is added to products, of one that does
  C* skipped;  // what errors of several skips come to on their way back
  C* residual; // z - mu, for a full precision
  C* error;    // what the law pulls with: P (z - mu) for a Gaussian
  C* delta;    // after' times what it pushes with: where both are the pull, the same as that
  C* slope;    // after', where a full precision comes between
  C* energy;   // the law's deviation, to be recorded
  C* moment;   // what that grows by with theta, to be learned from
  C* constant_feedback; // W^T P (z' - b) from the clamped node that this one predicts
  C* velocity;
  C* v; // what a stepper moves, where the gradient is g: z itself, or the error z - mu
  C* g;
  C* of_error;                          // the gradient for the error, where states move
  C* s;                                 // what the motions of the method leave
  C* h;                                 // and what else it keeps, or draws
  C* x;                                 // the point before, and
  C* pairs;                             // ways to points, and then changes of g on these
  C* led;                               // that in standard deviations of a full covariance
  C* theta;                             // of a law of one's own
  C* known;                             // 1 where an element holds still
  C* scale;                             // that gradients of samples are brought down by: one row
  typename P::Operand* paired[kInputs]; // what `round` makes, where products take pairs
  typename P::Operand* paired_through;
  int64_t size; // of one, in elements

  const C* source() const { // of predictions
    return base ? base : z;
  }
  const C* input(Input of) const {
    return of == Input::activation ? a
           : of == Input::delta    ? delta
           : of == Input::error    ? error
                                   : residual;
  }
  // before(z), or another activation.
  C* activation(int64_t k) const {
    return k < 0 ? a : through + k * size;
  }
  const typename P::Operand* operand(Input of, int64_t k) const {
    if constexpr (P::kColumns == 1)
      return k < 0 ? input(of) : activation(k);
    else
      return k < 0 ? paired[static_cast<int>(of)] : paired_through + k * size;
  }
};

// Hands out the buffers of every node from `base` on and returns how many elements they take.
template <class Layout>
int64_t lay_out(const ChainArgs& args, typename Layout::C* base,
                Buffers<typename Layout::Products>* buffers) {
  using C = typename Layout::C;
  using O = typename Layout::O;
  static_assert(sizeof(C) == sizeof(O));
  int64_t taken = 0;
  for (int64_t l = 0; l < args.nodes; ++l) {
    const ChainNode& node = args.node[l];
    const auto take = [&](bool wanted, int64_t n = 0) -> C* {
      if (!wanted)
        return nullptr;
      C* p = base + taken;
      taken += Layout::rows(n ? n : node.n) * Layout::width * kLanes<C>;
      return p;
    };
    const bool multiplied = node.away.products.count;
    const auto take_all = [&](int64_t count) {
      C* const first = count > 0 ? take(true) : nullptr;
      for (int64_t k = 1; k < count; ++k)
        take(true);
      return first;
    };
    const bool gram = gram_among(args, node.out);
    const bool varies = node.predicted && node.prediction_varies;
    const bool fed_back = node.predicted && node.feeds_back;
    const bool bent = node.predicted && is_bent(args, node);
    const bool full = node.predicted && node.full_precision;
    const bool every =
        node.predicted && (args.energies || args.learn != Learn::never || args.has_stepper);
    const bool stepped = node.free && args.has_stepper;
    const bool rises = stepped && args.method.errors;
    Buffers<typename Layout::Products> b{};
    b.z = take(true);
    b.base = take(node.free && args.fixed);
    b.a = multiplied && (gram || node.before.kind != Activation::identity) ? take(true) : b.z;
    if (b.a == b.z && b.base)
      b.a = b.base;
    b.size = Layout::rows(node.n) * Layout::width * kLanes<C>;
    b.through = take_all(node.throughs);
    b.next = take(gram);
    b.mu = take(node.predicted && !varies);
    b.rest = take(node.predicted && has_rest(node));
    b.skipped = take(node.free && (node.away.skips.count > 1 || node.throughs));
    b.residual = take(full);
    const bool expressed = node.predicted && node.law == Law::expression;
    b.error = take(fed_back || full || every || expressed);
    const bool leads = stepped && bounds_states(args);
    b.delta = bent || leads || (b.error && pushes_apart(node.law)) ? take(true) : b.error;
    b.slope = take(bent && (full || rises || leads));
    b.of_error = take(leads);
    b.led = take(stepped && node.measure && !node.whitened);
    // of errors that move, a Gaussian's energy follows at once
    const bool at_once = rises && (node.law == Law::gaussian || node.whitened);
    b.energy = take(node.predicted &&
                    (args.energies || (args.has_stepper && args.method.looks && !at_once)));
    b.moment = take(node.moment != nullptr);
    b.constant_feedback = take(gram);
    b.velocity = take(node.velocity && !args.has_stepper);
    b.v = rises ? take(true) : b.z;
    b.g = take(stepped);
    b.s = take(stepped);
    b.h = take(stepped && (args.method.keeps || args.method.draws));
    b.x = take(stepped && args.method.searches);
    b.pairs = take_all(stepped ? 2 * args.method.pairs : 0);
    b.theta = take(node.theta != nullptr);
    b.known = take(node.free && node.known);
    b.scale = take(stepped && args.max_norm > 0, 1);
    if constexpr (Layout::Products::kColumns > 1) {
      const bool by_gram = gram_among(args, node.in);
      const bool wanted[kInputs] = {multiplied, fed_back && !by_gram, by_gram, full};
      for (int i = 0; i < kInputs; ++i)
        b.paired[i] = reinterpret_cast<O*>(take(wanted[i]));
      b.paired_through = reinterpret_cast<O*>(take_all(node.throughs));
    }
    if (buffers)
      buffers[l] = b;
  }
  return taken;
}

// What a stepper knows of a tile's samples.
template <class Layout>
struct Stepping {
  Progress of[Layout::samples];
  struct Weights {
    Vec<typename Layout::C> g, s, h;
  } s[Layout::width], v[Layout::width];
  Vec<typename Layout::C> keeps[Layout::width], rate[Layout::width];
};

// Places in two vectors of numbers.
template <class C>
using Lanes = VecN<typename ExpConstants<C>::Int, kLanes<C>>;

// Samples of a tile that are not at their end: how many, and where the first of them are.
template <class Layout>
struct Half {
  int count;
  int at[Layout::w];
};

template <class Layout>
struct Tile {
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
  // Other activations of rows i to i + rows.
  void activate_through(int64_t l, int64_t i, int64_t rows) const {
    const Buffers<P>& b = buffers[l];
    for (int64_t k = 0; k < args.node[l].throughs; ++k) {
      activate_all<C>(args.node[l].through[k].before, b.source() + i * row,
                      b.activation(k) + i * row, rows * width);
      if constexpr (P::kColumns > 1)
        Layout::round(b.activation(k), args.node[l].n, i, rows, b.paired_through + k * b.size);
    }
  }
  void round(int64_t l, Input of) const {
    round(l, of, 0, Layout::rows(args.node[l].n));
  }

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

  // The norm of before(z) of the nodes that predict node l, and of the z that skips take, for every
  // sample, if it is wanted.
  struct Norms {
    Vec<C> of[Layout::width];
  };
  Norms norms(int64_t l) const {
    double squares[Layout::samples] = {};
    for (const Numbers edges : {args.node[l].moving.products, args.node[l].resting.products})
      for (const int64_t e : edges) {
        const int64_t source = args.edge[e].source;
        Layout::sum(buffers[source].activation(args.edge[e].through), args.node[source].n, squares,
                    [](auto x) { return x * x; });
      }
    for (const Numbers edges : {args.node[l].moving.skips, args.node[l].resting.skips})
      for (const int64_t e : edges) {
        const int64_t source = args.edge[e].source;
        Layout::sum(buffers[source].source(), args.node[source].n, squares,
                    [](auto x) { return x * x; });
      }
    Norms result;
    for (double& square : squares)
      square = __builtin_sqrt(square);
    for (int v = 0; v < width; ++v)
      result.of[v] = Layout::per_sample(squares, v);
    return result;
  }

  // The prediction where a state that is not known differs from it by no more than rounding does,
  // else the state.
  static Vec<C> settled(const Buffers<P>& b, int64_t at, Vec<C> z, Vec<C> prediction,
                        Vec<C> rounding) {
    constexpr C eps = sizeof(C) == 4 ? C(1.1920929e-7) : C(2.220446049250313e-16);
    const Vec<C> d = z - prediction, size = prediction < C(0) ? -prediction : prediction;
    const Vec<C> bound = rounding + C(4) * eps * size;
    const Vec<C> to = (d < C(0) ? -d : d) <= bound ? prediction : z;
    return b.known ? load(b.known + at) > C(0) ? z : to : to;
  }

  // Adds what skips products to rows i to i + rows of these.
  void skip(Numbers edges, int64_t i, int64_t rows, Vec<C>* c) const {
    for (const int64_t e : edges) {
      const C* const z = buffers[args.edge[e].source].source() + i * row;
      const Vec<C> by = splat(static_cast<C>(args.edge[e].skip));
      for (int64_t q = 0; q < rows * width; ++q)
        c[q] = fma(by, load(z + q * w), c[q]);
    }
  }

  // Adds what does not change, likewise.
  void add_rest(int64_t l, int64_t i, int64_t rows, Vec<C>* c) const {
    const C* const rest = buffers[l].rest + i * row;
    for (int64_t q = 0; q < rows * width; ++q)
      c[q] += load(rest + q * w);
  }

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

  // Rows i to i + rows of a prediction that does not change, or of what of one does not, given
  // those of its products.
  void predict_once(int64_t l, int64_t i, int64_t rows, const Vec<C>* c, const Norms* norm) {
    if (args.node[l].prediction_varies) {
      for (int64_t q = 0; q < rows * width; ++q)
        store(buffers[l].rest + i * row + q * w, c[q]);
      return;
    }
    predict(l, i, rows, c, buffers[l].mu);
    if (norm) {
      for (int64_t r = i; r < i + rows; ++r)
        for (int v = 0; v < width; ++v) {
          C* const z = buffers[l].z + r * row + v * w;
          store(z,
                settled(buffers[l], r * row + v * w, load(z), load(buffers[l].mu + r * row + v * w),
                        Layout::constant(args.node[l].rounding, r) * norm->of[v]));
        }
      activate_source(l, i, rows);
    }
    if (args.node[l].swept) {
      for (int64_t at = i * row; at < (i + rows) * row; at += w)
        store(buffers[l].z + at, load(buffers[l].mu + at));
      activate_source(l, i, rows);
    }
  }

  // The same of a state that starts at its prediction. `find_error_as` does the same arithmetic, so
  // that the first error is zero in every bit.
  void sweep(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    predict(l, i, rows, c, buffers[l].z);
    activate_source(l, i, rows);
  }

  void predict(int64_t l, int64_t i, int64_t rows, const Vec<C>* c, C* to) {
    const ChainNode& node = args.node[l];
    C* const mu = to + i * row;
    for (int64_t q = 0; q < rows * width; ++q)
      store(mu + q * w, c[q] + Layout::constant(node.bias, i + q / width));
    activate_all<C>(node.after, mu, mu, rows * width);
  }

  // before(z) for the products away from node l
  void activate_source(int64_t l, int64_t i, int64_t rows) {
    const Buffers<P>& b = buffers[l];
    const C* const z = b.source();
    if (b.base && !args.resume)
      std::memcpy(b.base + i * row, b.z + i * row, rows * row * sizeof(C));
    if (b.a != z)
      activate_all<C>(args.node[l].before, z + i * row, b.a + i * row, rows * width);
    round(l, Input::activation, i, rows);
    activate_through(l, i, rows);
  }

  void constant_feedback(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    for (int64_t q = 0; q < rows * width; ++q)
      store(buffers[l].constant_feedback + i * row + q * w, c[q]);
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
      return predict(l, i, rows, c, buffers[l].error);
    with_kind(args.node[l].after.kind,
              [&](auto kind) { find_error_as<kind>(l, i, rows, c, norm); });
    round(l, args.node[l].full_precision ? Input::residual : Input::delta, i, rows);
    if (norm) // states may have settled
      activate_source(l, i, rows);
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

  void swap_activations(int64_t l) {
    Buffers<P>& b = buffers[l];
    C* const a = b.a;
    b.a = b.next;
    b.next = a;
    round(l, Input::activation);
  }

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

  // x where an element is not known, else 0.
  static Vec<C> unknown(const Buffers<P>& b, int64_t at, Vec<C> x) {
    return b.known ? load(b.known + at) > C(0) ? Vec<C>{} : x : x;
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
    const Rates rates = this->rates(node, b);
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
    const Rates rates = this->rates(node, b);
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
    const Skipping skipping = this->skipping(l, i, rows);
    const bool by_metric = moves_by_metric(node);
    const bool by_states = !args.method.errors || node.full_precision;
    const bool expressed = node.predicted && node.law == Law::expression && !by_states;
    if (expressed)
      express(node, i, rows, b.v, nullptr, b.theta, false,
              [&](int64_t at, const OfLaw<C>& of) { store(b.g + at, of.pull); });
    int64_t at = i * row;
    for (int64_t r = i; r < i + rows; ++r)
      for (int v = 0; v < width; ++v, at += w) {
        const Vec<C> back = fed_back<kind>(b, at, before, skipping, feedback);
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
    const Skipping skipping = this->skipping(l, i, rows);
    for (int64_t at = i * row; at < (i + rows) * row; at += w) {
      const Vec<C> back = fed_back<kind>(b, at, before, skipping, feedback);
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

  // Pair k of node l: the way to a point, or `after` all those, the change of the gradient on it.
  C* pair(int64_t l, int64_t k, bool after = false) const {
    const int64_t place = k + (after ? args.method.pairs : 0);
    return buffers[l].pairs + place * Layout::rows(args.node[l].n) * row;
  }
  // One over the product of the two, of samples; 0 where there is no such pair.
  double* curvatures(int64_t k) const {
    return reinterpret_cast<double*>(stepping + 1) + k * Layout::samples;
  }

  // f(node, row, vector, where they are) for all elements that move
  template <class F>
  void each_moving(F f) const {
    for (int64_t l = 0; l < args.nodes; ++l)
      for (int64_t i = 0; args.node[l].free && i < Layout::rows(args.node[l].n); ++i)
        for (int v = 0; v < width; ++v)
          f(l, i, v, i * row + v * w);
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
      const Rates rates = this->rates(node, b);
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

  bool done() const {
    for (const Progress& p : stepping->of)
      if (!p.done)
        return false;
    return true;
  }

  // The samples that are not at their end.
  Half<Layout> live() const {
    Half<Layout> half{};
    for (int i = 0; i < Layout::samples; ++i)
      if (!stepping->of[i].done) {
        if (half.count < w)
          half.at[half.count] = i;
        ++half.count;
      }
    return half;
  }

  // f(mine, its) for every buffer of a sweep, [n, vectors], that holds something between two.
  template <class Other, class F>
  void each_lasting(const Tile<Other>& other, F f) const {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const auto &mine = buffers[l], &its = other.buffers[l];
      const auto one = [&](C* a, C* b) {
        if (a)
          f(a, b, args.node[l].n);
      };
      one(mine.z, its.z);
      one(mine.mu, its.mu);
      one(mine.rest, its.rest);
      one(mine.theta, its.theta);
      if (!args.node[l].free)
        continue;
      if (mine.v != mine.z)
        one(mine.v, its.v);
      one(mine.g, its.g);
      one(mine.s, its.s);
      one(mine.h, its.h);
      one(mine.known, its.known);
      if (mine.scale)
        f(mine.scale, its.scale, 1);
    }
  }

  // Goes on with these samples of a tile twice as wide.
  template <class Other>
  void take(const Tile<Other>& wide, const Half<Other>& half) {
    Lanes<C> from;
    for (int j = 0; j < w; ++j) {
      from[j] = half.at[j < half.count ? j : 0];
      stepping->of[j] = wide.stepping->of[from[j]];
      stepping->of[j].done |= j >= half.count;
    }
    each_lasting(wide, [&](C* to, const C* x, int64_t n) {
      for (int64_t i = 0; i < n; ++i)
        store(to + i * w, __builtin_shuffle(load(x + 2 * i * w), load(x + (2 * i + 1) * w), from));
    });
    for (int64_t l = 0; l < args.nodes; ++l)
      if (!args.node[l].free)
        activate_source(l, 0, args.node[l].n);
    prepare_motion();
  }

  // Puts them back in their places.
  template <class Other>
  void give_back(Tile<Other>& wide, const Half<Other>& half) const {
    Lanes<C> from[2];
    for (int i = 0; i < 2 * w; ++i)
      from[i / w][i % w] = i % w;
    for (int j = 0; j < half.count; ++j) {
      from[half.at[j] / w][half.at[j] % w] = w + j;
      wide.stepping->of[half.at[j]] = stepping->of[j];
    }
    each_lasting(wide, [&](const C* x, C* to, int64_t n) {
      for (int64_t q = 0; q < 2 * n; ++q)
        store(to + q * w, __builtin_shuffle(load(to + q * w), load(x + q / 2 * w), from[q % 2]));
    });
    wide.prepare_motion();
  }

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
    const Skipping skipping = this->skipping(l, i, rows);
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
};

// Consecutive tiles, whose workspaces lie one behind the other.
template <class Layout>
struct Tiles {
  using C = typename Layout::C;
  using P = typename Layout::Products;
  static constexpr int64_t width = Layout::width;

  const ChainArgs& args;
  char* const workspaces;
  Vec<C>* const partial;
  const int64_t first, count;
  const int64_t taken = lay_out<Layout>(args, nullptr, nullptr) * int64_t(sizeof(C));

  static int64_t workspace_size(const ChainArgs& args) {
    return size(args, lay_out<Layout>(args, nullptr, nullptr) * int64_t(sizeof(C)));
  }

  static constexpr bool kNarrows = Layout::samples == 2 * Layout::w && width == 2;
  using Narrow = Wide<P, 1>; // what such tiles become

  static int64_t size(const ChainArgs& args, int64_t taken) {
    if constexpr (kNarrows)
      return own_size(args, taken) + (args.narrows ? Tiles<Narrow>::workspace_size(args) : 0);
    else
      return own_size(args, taken);
  }

  // Of the buffers, so many bytes, and what else there is of a tile: first what a method knows.
  static int64_t own_size(const ChainArgs& args, int64_t taken) {
    return round_up(taken + stepping_size(args) + args.nodes * int64_t(sizeof(Buffers<P>)), 64);
  }

  static int64_t stepping_size(const ChainArgs& args) {
    const int64_t curvatures = args.method.pairs * Layout::samples * int64_t(sizeof(double));
    return args.has_stepper ? int64_t(sizeof(Stepping<Layout>)) + curvatures : 0;
  }

  Tile<Layout> tile(int64_t t) const {
    char* const rest = workspaces + t * size(args, taken) + taken;
    return {args, reinterpret_cast<Buffers<P>*>(rest + stepping_size(args)),
            (first + t) * Layout::samples, reinterpret_cast<Stepping<Layout>*>(rest)};
  }

  static int64_t rows(const ChainArgs& args, Stage s) {
    const bool whole = s.work == Work::swap_activations || s.work == Work::record ||
                       s.work == Work::keep_for_learning || s.work == Work::judge ||
                       s.work == Work::accept || s.work == Work::normalize ||
                       s.work == Work::search;
    return whole ? 1 : Layout::rows(args.node[s.node].n);
  }

  void lay_out_all() const {
    for (int64_t t = 0; t < count; ++t)
      lay_out<Layout>(args, reinterpret_cast<C*>(workspaces + t * size(args, taken)),
                      tile(t).buffers);
  }

  void begin() const {
    lay_out_all();
    for (int64_t t = 0; t < count; ++t)
      tile(t).begin();
  }

  // What `norms` gives for what predicts node l, of one tile after the other: once for each.
  struct NormsOf {
    const int64_t l;
    int64_t first;
    typename Tile<Layout>::Norms found;

    const auto* in(const Tile<Layout>& tile) {
      if (first != tile.first)
        found = tile.norms(l), first = tile.first;
      return &found;
    }
  };

  // A matrix, and the node whose buffer it is multiplied with, or which activation of it.
  struct Operands {
    PackedMatrix matrix;
    int64_t source = -1, through = -1;
  };

  // Products that are added up: along edges, or back; or one, which may be of nothing.
  struct Products {
    Numbers edges;
    bool back = false;
    Operands only;

    int64_t count() const {
      return edges.count ? edges.count : 1;
    }
    Operands of(const ChainArgs& args, int64_t j) const {
      if (!edges.count)
        return only;
      const ChainEdge& edge = args.edge[edges.first[j]];
      return back ? Operands{edge.transposed, edge.target}
                  : Operands{edge.weight, edge.source, edge.through};
    }
  };

  void stage(Stage s, Rows wanted) const {
    const int64_t l = s.node;
    const ChainNode& node = args.node[l];
    const auto multiply = [&](const Products& products, Input x, auto f) {
      Layout::product(
          node.n, products.count(),
          [&](int64_t j) {
            const Operands of = products.of(args, j);
            return Factor{of.matrix, of.source < 0 ? 0 : args.node[of.source].n};
          },
          wanted, count, partial,
          [&](int64_t t, int64_t j) {
            const Operands of = products.of(args, j);
            return of.source < 0 ? nullptr : tile(t).buffers[of.source].operand(x, of.through);
          },
          [&](int64_t t, int64_t i, int64_t rows, Vec<C>* c) { f(tile(t), i, rows, c); });
    };
    const auto predict = [&](const Sum& sum, auto f) {
      const bool rests = has_rest(node) && (&sum == &node.moving || node.prior);
      multiply({sum.products}, Input::activation, [&](auto it, int64_t i, int64_t n, auto* c) {
        it.skip(sum.skips, i, n, c);
        if (rests)
          it.add_rest(l, i, n, c);
        f(it, i, n, c);
      });
    };
    const bool fed = node.away.products.count;
    const Products fed_back{node.away.products, true};
    switch (s.work) {
    case Work::predict_once: {
      NormsOf norms{l, -1, {}};
      const bool whole = !node.prediction_varies, settles = whole && node.rounding;
      return predict(whole ? node.moving : node.resting, [&](auto it, auto... c) {
        it.predict_once(l, c..., settles ? norms.in(it) : nullptr);
      });
    }
    case Work::sweep:
      return predict(node.moving, [&](auto it, auto... c) { it.sweep(l, c...); });
    case Work::constant_feedback:
      return multiply(fed_back, Input::error,
                      [&](auto it, auto... c) { it.constant_feedback(l, c...); });
    case Work::find_error:
      if (node.in.count && errs_by_product(args, node, s.learning)) {
        // one by one, what predicts node l moves after it does
        const bool early = s.step == 0 || args.update_order == UpdateOrder::one_by_one;
        const bool settles = node.rounding && early && node.prediction_varies;
        NormsOf norms{l, -1, {}};
        return predict(node.moving, [&](auto it, auto... c) {
          it.find_error(l, c..., settles ? norms.in(it) : nullptr);
        });
      }
      for (int64_t t = 0; t < count; ++t)
        tile(t).err_of_constant(l, wanted);
      return;
    case Work::apply_precision:
      return multiply({{}, false, {node.full_precision, l}}, Input::residual,
                      [&](auto it, auto... c) { it.apply_precision(l, c...); });
    case Work::normalize:
      for (int64_t t = 0; t < count; ++t)
        tile(t).normalize(l);
      return;
    case Work::gather:
      return multiply({node.through[s.through].products, true}, Input::delta,
                      [&](auto it, auto... c) { it.gather(l, s.through, c...); });
    case Work::descend: {
      const bool fresh = s.step == 0 && !args.resume;
      const auto step = [&](auto it, auto... c) { it.update(l, c..., fresh); };
      const ChainEdge* gram = gram_among(args, node.out);
      if (gram)
        return multiply({{}, false, {gram->gram, l}}, Input::activation, step);
      if (fed)
        return multiply(fed_back, Input::delta, step);
      for (int64_t t = 0; t < count; ++t)
        tile(t).update(l, wanted.begin, wanted.end - wanted.begin, nullptr, fresh);
      return;
    }
    case Work::swap_activations:
      for (int64_t t = 0; t < count; ++t)
        tile(t).swap_activations(l);
      return;
    case Work::record:
      for (int64_t t = 0; t < count; ++t)
        tile(t).record(s.step);
      return;
    case Work::draw_noise:
      for (int64_t t = 0; t < count; ++t)
        tile(t).draw_noise(l, wanted, s.step);
      return;
    case Work::move:
      for (int64_t t = 0; t < count; ++t)
        tile(t).move(l, wanted, s.step);
      return;
    case Work::move_and_predict: {
      if (node.in.count && node.prediction_varies) {
        const bool settles = node.rounding && s.step == 0;
        NormsOf norms{l, -1, {}};
        return predict(node.moving, [&](auto it, auto... c) {
          it.move_and_predict(l, c..., settles ? norms.in(it) : nullptr, s.step, s.learning);
        });
      }
      for (int64_t t = 0; t < count; ++t)
        tile(t).move_and_predict(l, wanted.begin, wanted.end - wanted.begin, nullptr, nullptr,
                                 s.step, s.learning);
      return;
    }
    case Work::backpropagate: {
      const auto back = [&](auto it, auto... c) { it.backpropagate(l, c...); };
      if (fed)
        return multiply(fed_back, Input::delta, back);
      for (int64_t t = 0; t < count; ++t)
        back(tile(t), wanted.begin, wanted.end - wanted.begin, nullptr);
      return;
    }
    case Work::backpropagate_to_errors: {
      const auto back = [&](auto it, auto... c) { it.backpropagate_to_errors(l, c...); };
      if (fed)
        return multiply(fed_back, Input::delta, back);
      for (int64_t t = 0; t < count; ++t)
        back(tile(t), wanted.begin, wanted.end - wanted.begin, nullptr);
      return;
    }
    case Work::whiten:
      return multiply({{}, false, {node.whiten, l}}, Input::residual,
                      [&](auto it, auto... c) { it.whiten(l, c...); });
    case Work::spread:
      return multiply({{}, false, {node.spread, l}}, Input::residual,
                      [&](auto it, auto... c) { it.spread(l, c...); });
    case Work::measure:
      return multiply({{}, false, {node.measure, l}}, Input::residual,
                      [&](auto it, auto... c) { it.measure(l, c...); });
    case Work::judge:
      for (int64_t t = 0; t < count; ++t)
        tile(t).judge(s.step);
      return;
    case Work::search:
      for (int64_t t = 0; t < count; ++t)
        tile(t).search();
      return;
    case Work::accept:
      for (int64_t t = 0; t < count; ++t)
        tile(t).accept();
      return;
    case Work::keep_for_learning:
      for (int64_t t = 0; t < count; ++t)
        tile(t).keep_for_learning();
    }
  }

  bool done() const {
    for (int64_t t = 0; t < count; ++t)
      if (!tile(t).done())
        return false;
    return true;
  }

  bool settled() const {
    for (int64_t t = 0; t < count; ++t)
      if (!tile(t).settled())
        return false;
    return true;
  }

  void end() const {
    for (int64_t t = 0; t < count; ++t)
      tile(t).end();
  }

  void run() const {
    begin();
    stages(
        args, [&](Stage s) { stage(s, {0, rows(args, s)}); },
        [&](int64_t t) { return done() || narrowed(t); }, [&] { return settled(); });
    end();
  }

  // Whether the one tile has gone on with half of its vectors, to the end, as no more of its
  // samples have not come to theirs before sweep t.
  bool narrowed(int64_t t) const {
    if constexpr (kNarrows) {
      if (!args.narrows || t == 0 || t == args.steps * args.method.sweeps)
        return false;
      auto wide = tile(0);
      const Half<Layout> half = wide.live();
      if (half.count > Narrow::samples)
        return false;
      const Tiles<Narrow> narrow{args, workspaces + own_size(args, taken), partial, 2 * first, 1};
      narrow.lay_out_all();
      auto it = narrow.tile(0);
      it.take(wide, half);
      stages_of_sweeping(
          args, t, [&](Stage s) { narrow.stage(s, {0, narrow.rows(args, s)}); },
          [&](int64_t) { return narrow.done(); }, [&] { return narrow.settled(); });
      it.give_back(wide, half);
      return true;
    }
    return false;
  }
};

// f(layout) for the layout of a kind of tile
template <class P, class F>
auto with_layout(TileKind kind, F f) {
  switch (kind) {
  case TileKind::wide2:
    return f(Wide<P, 2>{});
  case TileKind::wide1:
    return f(Wide<P, 1>{});
  case TileKind::thin4:
    return f(Thin<P, 4>{});
  case TileKind::thin1:
    return f(Thin<P, 1>{});
  }
  __builtin_unreachable();
}

template <class P>
int64_t packed_size(TileKind kind, int64_t rows, int64_t depth) {
  return with_layout<P>(kind, [&](auto layout) { return layout.packed_size(rows, depth); });
}

template <class P>
int64_t packed_stride(TileKind kind, int64_t rows) {
  return with_layout<P>(kind, [&](auto layout) { return layout.packed_stride(rows); });
}

template <class P>
PackedMatrix as_it_is(TileKind kind, const void* matrix, int64_t rows, int64_t row_stride,
                      int64_t depth_stride, int64_t passes) {
  const Strided<typename P::Number> m{static_cast<const typename P::Number*>(matrix), row_stride,
                                      depth_stride};
  return with_layout<P>(kind, [&](auto layout) { return layout.as_it_is(m, rows, passes); });
}

template <class P>
void pack(TileKind kind, const void* matrix, int64_t rows, int64_t depth, int64_t row_stride,
          int64_t depth_stride, Rows wanted, void* packed) {
  const Strided<typename P::Number> m{static_cast<const typename P::Number*>(matrix), row_stride,
                                      depth_stride};
  with_layout<P>(kind, [&](auto layout) {
    layout.pack(m, rows, depth, wanted, static_cast<typename P::Operand*>(packed));
  });
}

template <class P>
int64_t workspace_size(const ChainArgs& args, TileKind kind) {
  return with_layout<P>(kind,
                        [&](auto layout) { return Tiles<decltype(layout)>::workspace_size(args); });
}

template <class P>
int64_t partial_size(TileKind kind, int64_t tiles) {
  return with_layout<P>(kind, [&](auto layout) {
    return tiles * layout.partial * int64_t(sizeof(Vec<typename P::Number>));
  });
}

template <class P, class F>
void with_tiles(const ChainArgs& args, TileKind kind, void* workspaces, void* partial, int64_t tile,
                int64_t tiles, F f) {
  with_layout<P>(kind, [&](auto layout) {
    f(Tiles<decltype(layout)>{args, static_cast<char*>(workspaces),
                              static_cast<Vec<typename P::Number>*>(partial), tile, tiles});
  });
}

template <class P>
void run(const ChainArgs& args, TileKind kind, void* workspace, void* partial, int64_t tile) {
  with_tiles<P>(args, kind, workspace, partial, tile, 1, [](auto it) { it.run(); });
}

template <class P>
void begin(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [](auto it) { it.begin(); });
}

template <class P>
void stage(const ChainArgs& args, TileKind kind, Stage stage, Rows wanted, void* workspaces,
           void* partial, int64_t tile, int64_t tiles) {
  with_tiles<P>(args, kind, workspaces, partial, tile, tiles,
                [&](auto it) { it.stage(stage, wanted); });
}

template <class P>
void end(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [](auto it) { it.end(); });
}

template <class P>
bool done(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  bool result = false;
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [&](auto it) { result = it.done(); });
  return result;
}

template <class P>
bool settled(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  bool result = false;
  with_tiles<P>(args, kind, workspace, nullptr, tile, 1, [&](auto it) { result = it.settled(); });
  return result;
}

template <class P>
int64_t rows(const ChainArgs& args, TileKind kind, Stage stage) {
  return with_layout<P>(kind,
                        [&](auto layout) { return Tiles<decltype(layout)>::rows(args, stage); });
}

constexpr int64_t kDepth = 256; // samples of a panel, which stays in the first-level cache

// (Adds) rows i to i + rows of scale a^T b to `out`: a [batch, R] and the panel of b's columns
// [batch, 2 vectors], both contiguous.
template <class P, int R, class C = typename P::Number, class O = typename P::Operand>
void outer_rows(const O* a, const O* panel, int64_t batch, int64_t rows, C scale, C* out,
                int64_t stride, int64_t columns, bool add) {
  constexpr int w = kLanes<C>;
  Vec<C> sums[R * 2];
  Wide<P, 2>::template multiply<R>(a, 1, R, operands<P>(batch), panel, false, sums);
  for (int r = 0; r < smaller(R, rows); ++r)
    for (int v = 0; v < 2 && v * w < columns; ++v) {
      C* const to = out + r * stride + v * w;
      const Vec<C> sum = sums[r * 2 + v];
      const auto finish = [&](auto extent) {
        store(to, add ? fma(splat(scale), sum, load(to, extent)) : scale * sum, extent);
      };
      if (columns - v * w >= w)
        finish(Whole{});
      else
        finish(First{static_cast<int>(columns - v * w)});
    }
}

template <class P>
void outer(const void* a, const void* b, Nonlinearity f, int64_t batch, int64_t m, int64_t n,
           double scale, int64_t begin, int64_t end, void* panel, void* out, int64_t stride) {
  using C = typename P::Number;
  using O = typename P::Operand;
  constexpr int w = kLanes<C>;
  const C s = static_cast<C>(scale);
  C* const numbers = static_cast<C*>(panel);
  // A pair takes the place of the first of its rows, or an earlier one.
  O* const packed = static_cast<O*>(panel);
  for (int64_t j = begin; j < end; j += 2 * w) {
    const int64_t columns = smaller(2 * w, end - j);
    for (int64_t k = 0; k < batch || k == 0; k += kDepth) {
      const int64_t depth = smaller(kDepth, batch - k);
      pack_rows(Exact<C>{}, {static_cast<const C*>(b) + k * n + j, 1, n}, 0, columns, 2 * w, depth,
                numbers, 2 * w);
      activate_all<C>(f, numbers, numbers, 2 * depth);
      Wide<P, 2>::round(numbers, depth, 0, depth, packed);
      for (int64_t i = 0; i < m; i += kRows) {
        const int64_t height = smaller(kRows, round_up(m - i, kStep));
        const O* const rows =
            static_cast<const O*>(a) + i * operands<P>(batch) + operands<P>(k) * height;
        C* const to = static_cast<C*>(out) + i * stride + j - begin;
        if (height == kRows)
          outer_rows<P, kRows>(rows, packed, depth, m - i, s, to, stride, columns, k > 0);
        else if (height == 2 * kStep)
          outer_rows<P, 2 * kStep>(rows, packed, depth, m - i, s, to, stride, columns, k > 0);
        else
          outer_rows<P, kStep>(rows, packed, depth, m - i, s, to, stride, columns, k > 0);
      }
    }
  }
}

template <class C>
void row_norms(const void* matrix, int64_t rows, int64_t depth, int64_t row_stride,
               int64_t depth_stride, double scale, void* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const C* const row = static_cast<const C*>(matrix) + i * row_stride;
    double square = 0;
    if (depth_stride == 1) {
      Vec<C> sums[4] = {};
      int64_t k = 0;
      for (; k + 4 * kLanes<C> <= depth; k += 4 * kLanes<C>)
        for (int q = 0; q < 4; ++q) {
          const Vec<C> x = load(row + k + q * kLanes<C>);
          sums[q] = fma(x, x, sums[q]);
        }
      for (int q = 0; q < 4; ++q)
        for (int v = 0; v < kLanes<C>; ++v)
          square += static_cast<double>(sums[q][v]);
      for (; k < depth; ++k)
        square += static_cast<double>(row[k] * row[k]);
    } else {
      for (int64_t k = 0; k < depth; ++k)
        square += static_cast<double>(row[k * depth_stride] * row[k * depth_stride]);
    }
    static_cast<C*>(out)[i] = static_cast<C>(scale * __builtin_sqrt(square));
  }
}

template <class C>
void sum_rows(const void* a, int64_t batch, int64_t n, double scale, void* out) {
  for_vectors<C>(n, [&](int64_t j, auto extent) {
    Vec<C> total{};
    for (int64_t k = 0; k < batch; ++k)
      total += load(static_cast<const C*>(a) + k * n + j, extent);
    store(static_cast<C*>(out) + j, static_cast<C>(scale) * total, extent);
  });
}

template <class C>
void learn(const LearnStep& given, int64_t rows, int64_t columns, const void* gradient,
           void* parameter, void* const* kept, int64_t stride) {
  with_rule(given.rule.kind, [&](auto rule) {
    // Copies: for all that the compiler knows, what is stored might change the originals, which it
    // would read and convert again for every vector.
    const LearnStep step = given;
    C* slot[kSlots] = {};
    for (int64_t s = rule.kFirstSlot; s < rule.kEndSlot; ++s)
      slot[s] = static_cast<C*>(kept[s]);
    for (int64_t r = 0; r < rows; ++r)
      for_vectors<C>(columns, [&](int64_t j, auto extent) {
        const int64_t i = r * stride + j;
        const auto each = [&](auto f) {
#pragma GCC unroll 4
          for (int64_t s = rule.kFirstSlot; s < rule.kEndSlot; ++s)
            if (slot[s])
              f(slot[s] + i, s);
        };
        Slots<C> slots;
        each([&](const C* from, int64_t s) {
          slots.of[s] = load(from, extent), slots.has[s] = true;
        });
        C* const to = static_cast<C*>(parameter) + i;
        Vec<C> p = load(to, extent);
        rule.template apply<C>(
            step, load(static_cast<const C*>(gradient) + r * columns + j, extent), p, slots);
        store(to, p, extent);
        each([&](C* to, int64_t s) { store(to, slots.of[s], extent); });
      });
  });
}

template <class P>
constexpr ChainKernels table() {
  using C = typename P::Number;
  using Thin4 = Thin<P, 4>;
  using Thin1 = Thin<P, 1>;
  return {kLanes<C>,
          P::kColumns,
          {2 * kLanes<C>, kLanes<C>, 4, 1},
          {kRows, kRows, Thin4::block, Thin1::block},
          4 * kRows,
          packed_size<P>,
          packed_stride<P>,
          as_it_is<P>,
          pack<P>,
          workspace_size<P>,
          partial_size<P>,
          run<P>,
          begin<P>,
          stage<P>,
          end<P>,
          done<P>,
          settled<P>,
          rows<P>,
          2 * kLanes<C>,
          2 * kLanes<C> * kDepth,
          outer<P>,
          row_norms<C>,
          sum_rows<C>,
          learn<C>};
}

} // namespace

#if defined(__AVX512BF16__)
extern const ChainKernels bfloat16_chain_kernels = table<Paired>();
#else
extern const ChainKernels chain_kernels[kDTypes] = {table<Exact<float>>(), table<Exact<double>>()};
#endif

} // namespace pyromancy::PYROMANCY_ISA
