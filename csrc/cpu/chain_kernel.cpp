#include "chain_kernel.h"

#include "activation.h"
#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// A register tile has at most kTile accumulators.
constexpr int kTile = kVectorBytes == 64 ? 24 : 12;
constexpr int kRows = kTile / 2; // of one that is two vectors wide
constexpr int kStep = kRows / 3; // a matrix's last panel has a multiple of these

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// Element (i, k) of a matrix is at w[i * row_stride + k * depth_stride].
template <class C>
struct Strided {
  const C* w;
  int64_t row_stride, depth_stride;
};

// Copies `height` rows from row i on, those from `filled` on being zero, so that the elements of a
// column lie side by side and columns `stride` apart.
template <class C>
void pack_rows(Strided<C> m, int64_t i, int64_t filled, int64_t height, int64_t depth, C* out,
               int64_t stride) {
  constexpr int w = kLanes<C>;
  for (int64_t r = 0; r < height; r += w) {
    const int rows = static_cast<int>(smaller(w, height - r));
    const int from = static_cast<int>(smaller(rows, filled > r ? filled - r : 0));
    const C* top = m.w + (i + r) * m.row_stride;
    int64_t k = 0;
    if (m.row_stride == 1)
      for (; k < depth; ++k)
        store(out + k * stride + r, load(top + k * m.depth_stride, First{from}), First{rows});
    else if (m.depth_stride == 1)
      for (; k + w <= depth; k += w) {
        Vec<C> square[w] = {};
        for (int q = 0; q < from; ++q)
          square[q] = load(top + q * m.row_stride + k);
        transpose<C>(square);
        for (int q = 0; q < w; ++q)
          store(out + (k + q) * stride + r, square[q], First{rows});
      }
    for (; k < depth; ++k)
      for (int q = 0; q < rows; ++q)
        out[k * stride + r + q] = q < from ? top[q * m.row_stride + k * m.depth_stride] : C(0);
  }
}

// A tile whose vectors hold one neuron of `w` samples. Buffers are [n, V vectors].
template <class C, int V>
struct Wide {
  static constexpr int w = kLanes<C>, width = V, samples = V * w;

  static int64_t rows(int64_t n) {
    return n;
  }
  static Vec<C> constant(const void* values, int64_t i) {
    return splat(static_cast<const C*>(values)[i]);
  }

  static int64_t packed_size(int64_t rows, int64_t depth) {
    return round_up(rows, kStep) * depth;
  }

  // Panels of kRows rows, in each of which the elements of a column lie side by side.
  static PackedMatrix pack(Strided<C> m, int64_t rows, int64_t depth, C* packed) {
    for (int64_t i = 0; i < rows; i += kRows) {
      const int64_t height = smaller(kRows, round_up(rows - i, kStep));
      pack_rows(m, i, smaller(height, rows - i), height, depth, packed + i * depth, height);
    }
    return {packed, 0};
  }

  // f(i, count, sums): rows i to i + count of A x, for x [depth, V vectors]. Every element of the
  // product is one chain of multiply-adds over k, whatever the tile around it.
  template <class F>
  static void product(PackedMatrix matrix, int64_t rows, int64_t depth, const C* x, F f) {
    const C* a = static_cast<const C*>(matrix.data);
    int64_t i = 0;
    Vec<C> sums[kRows * V];
    for (; i + kRows <= round_up(rows, kStep); i += kRows) {
      panel<kRows>(a + i * depth, depth, x, sums);
      f(i, smaller(kRows, rows - i), sums);
    }
    if (i >= rows)
      return;
    if (i + 2 * kStep <= round_up(rows, kStep))
      panel<2 * kStep>(a + i * depth, depth, x, sums);
    else
      panel<kStep>(a + i * depth, depth, x, sums);
    f(i, rows - i, sums);
  }

  template <int R>
  static void panel(const C* a, int64_t depth, const C* x, Vec<C>* sums) {
    Vec<C> c[R][V] = {};
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k) {
      Vec<C> b[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        b[v] = load(x + (k * V + v) * w);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vec<C> weight = splat<C>(a[k * R + r]);
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
          c[r][v] = fma(weight, b[v], c[r][v]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        sums[r * V + v] = c[r][v];
  }

  // Samples [*, n], `stride` apart, into a buffer; those beyond `count` read zero.
  static void load_samples(const C* from, int64_t stride, int64_t n, int64_t count, C* to) {
    for (int v = 0; v < V; ++v) {
      const int rows = static_cast<int>(smaller(w, count > v * w ? count - v * w : 0));
      const C* row = from + v * w * stride;
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        Vec<C> square[w] = {};
        for (int r = 0; r < rows; ++r)
          square[r] = load(row + r * stride + j, extent);
        transpose<C>(square);
        for (int q = 0; q < w && j + q < n; ++q)
          store(to + ((j + q) * V + v) * w, square[q]);
      });
    }
  }

  static void store_samples(const C* from, int64_t n, int64_t count, C* to) {
    for (int v = 0; v < V; ++v) {
      const int rows = static_cast<int>(smaller(w, count > v * w ? count - v * w : 0));
      C* row = to + v * w * n;
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        Vec<C> square[w] = {};
        for (int q = 0; q < w && j + q < n; ++q)
          square[q] = load(from + ((j + q) * V + v) * w);
        transpose<C>(square);
        for (int r = 0; r < rows; ++r)
          store(row + r * n + j, square[r], extent);
      });
    }
  }

  // total[sample] += the products of a and b, carried in double, neuron after neuron
  static void dot(const C* a, const C* b, int64_t n, double* total) {
    for (int64_t i = 0; i < n; ++i)
      for (int v = 0; v < V; ++v)
        add_to(total + v * w, load(a + (i * V + v) * w) * load(b + (i * V + v) * w));
  }
};

// A tile whose vectors hold `w` neurons of one sample. Buffers are [n / w, S vectors]; what lies in
// the lanes beyond n is never used.
template <class C, int S>
struct Thin {
  static constexpr int w = kLanes<C>, width = S, samples = S;
  static constexpr int blocks = S == 1 ? 8 : kVectorBytes == 64 ? 6 : 2; // of a register tile

  static int64_t rows(int64_t n) {
    return (n + w - 1) / w;
  }
  static Vec<C> constant(const void* values, int64_t i) {
    return load(static_cast<const C*>(values) + i * w);
  }

  static int64_t packed_size(int64_t rows, int64_t depth) {
    return round_up(rows, w) * depth;
  }

  static PackedMatrix pack(Strided<C> m, int64_t rows, int64_t depth, C* packed) {
    if (m.row_stride == 1 && rows % w == 0)
      return {m.w, m.depth_stride};
    const int64_t stride = round_up(rows, w);
    pack_rows(m, 0, rows, stride, depth, packed, stride);
    return {packed, stride};
  }

  template <class F>
  static void product(PackedMatrix matrix, int64_t n, int64_t depth, const C* x, F f) {
    const C* a = static_cast<const C*>(matrix.data);
    Vec<C> sums[blocks * S];
    int64_t i = 0;
    for (; i + blocks <= rows(n); i += blocks) {
      panel<blocks>(a + i * w, matrix.stride, depth, x, sums);
      f(i, blocks, sums);
    }
    if constexpr (blocks > 4)
      for (; i + 4 <= rows(n); i += 4) {
        panel<4>(a + i * w, matrix.stride, depth, x, sums);
        f(i, 4, sums);
      }
    for (; i < rows(n); ++i) {
      panel<1>(a + i * w, matrix.stride, depth, x, sums);
      f(i, 1, sums);
    }
  }

  template <int R>
  static void panel(const C* a, int64_t stride, int64_t depth, const C* x, Vec<C>* sums) {
    Vec<C> c[R][S] = {};
    for (int64_t block = 0; block < depth; block += w, x += S * w)
      for (int64_t k = 0; k < smaller(w, depth - block); ++k, a += stride) {
        Vec<C> each[S];
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s)
          each[s] = splat<C>(x[s * w + k]);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const Vec<C> weights = load(a + r * w);
#pragma GCC unroll 4
          for (int s = 0; s < S; ++s)
            c[r][s] = fma(weights, each[s], c[r][s]);
        }
      }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s)
        sums[r * S + s] = c[r][s];
  }

  static void load_samples(const C* from, int64_t stride, int64_t n, int64_t count, C* to) {
    for (int s = 0; s < S; ++s)
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        store(to + (j / w * S + s) * w, s < count ? load(from + s * stride + j, extent) : Vec<C>{});
      });
  }

  static void store_samples(const C* from, int64_t n, int64_t count, C* to) {
    for (int s = 0; s < smaller(S, count); ++s)
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        store(to + s * n + j, load(from + (j / w * S + s) * w), extent);
      });
  }

  static void dot(const C* a, const C* b, int64_t n, double* total) {
    for (int s = 0; s < S; ++s)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = (i / w * S + s) * w + i % w;
        total[s] += static_cast<double>(a[at] * b[at]);
      }
  }
};

// What a tile keeps for a node, each [rows(n), width vectors]; null where the chain never needs it.
template <class C>
struct Buffers {
  C* z;
  C* a;        // before(z); z itself where that is the identity
  C* next;     // the activations to come, where the update still reads a
  C* mu;       // a prediction that does not change
  C* residual; // z - mu
  C* error;    // P (z - mu)
  C* delta;    // after' times error; the error itself where that is the identity
  C* slope;    // after', where a full precision comes between
  C* drive;    // W^T P (z' - b) from the clamped node that this one predicts
  C* velocity;
};

// Hands out the buffers of every node from `base` on and returns how many elements they take.
template <class C, class Layout>
int64_t lay_out(const ChainArgs& args, C* base, Buffers<C>* buffers) {
  int64_t taken = 0;
  for (int64_t l = 0; l < args.nodes; ++l) {
    const ChainNode& node = args.node[l];
    const ChainEdge* in = l > 0 ? args.edge + l - 1 : nullptr;
    const ChainEdge* out = l + 1 < args.nodes ? args.edge + l : nullptr;
    const auto take = [&](bool wanted) -> C* {
      if (!wanted)
        return nullptr;
      C* p = base + taken;
      taken += Layout::rows(node.n) * Layout::width * kLanes<C>;
      return p;
    };
    const bool gram = out && out->gram;
    const bool varies = node.predicted && node.prediction_varies;
    const bool bent = varies && in->after.kind != Activation::identity;
    const bool full = node.predicted && node.full_precision;
    Buffers<C> b{};
    // Of a clamped node whose prediction is known, nothing is needed.
    const bool used = node.predicted || node.free || !out || !args.node[l + 1].prediction_known;
    b.z = take(used);
    b.a = used && out && (gram || out->before.kind != Activation::identity) ? take(true) : b.z;
    b.next = take(gram);
    b.mu = take(node.predicted && !varies);
    b.residual = take(node.predicted && (full || args.every_error));
    b.error = take(varies || full || (node.predicted && args.every_error));
    b.delta = bent ? take(true) : b.error;
    b.slope = take(bent && full);
    b.drive = take(gram);
    b.velocity = take(node.velocity != nullptr);
    if (buffers)
      buffers[l] = b;
  }
  return taken;
}

template <class C, class Layout>
struct Tile {
  static constexpr int w = Layout::w, width = Layout::width;
  static constexpr int64_t row = width * w; // elements

  const ChainArgs& args;
  Buffers<C>* const buffers;
  const int64_t first; // sample

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

  void run() {
    prepare();
    for (int64_t t = 0; t < args.steps; ++t) {
      const bool fresh = t == 0 && !args.resume;
      // A node's update follows the error that feeds back into it while that is in the cache.
      for (int64_t l = 0; l < args.nodes; ++l) {
        predict(l);
        if (l > 0)
          descend(l - 1, fresh);
      }
      descend(args.nodes - 1, fresh);
      if (args.energies)
        record(t);
    }
    for (int64_t l = 0; l < args.nodes; ++l)
      if (const ChainNode& node = args.node[l]; node.free) {
        store_samples(buffers[l].z, node.n, node.state);
        if (args.steps > 0) // velocities that are not resumed start with the first
          store_samples(buffers[l].velocity, node.n, node.velocity);
      }
  }

  void errors() {
    prepare();
    for (int64_t l = 0; l < args.nodes; ++l)
      predict(l);
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<C>& b = buffers[l];
      store_samples(b.error, node.n, node.error);
      store_samples(b.delta, node.n, node.delta);
      if (!node.square)
        continue;
      for (int64_t at = 0; at < Layout::rows(node.n) * row; at += w)
        store(b.residual + at, load(b.residual + at) * load(b.error + at));
      store_samples(b.residual, node.n, node.square);
    }
  }

  // Loads the states and computes what no E-step changes.
  void prepare() {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<C>& b = buffers[l];
      if (b.z)
        load_samples(node.state, node.n, node.n, b.z);
      if (b.velocity && args.resume)
        load_samples(node.velocity, node.n, node.n, b.velocity);
      if (b.a != b.z)
        activate_all<C>(args.edge[l].before, b.z, b.a, Layout::rows(node.n) * width);
      if (l == 0 && b.mu)
        load_samples(args.prior, args.prior_stride, node.n, b.mu);
    }
    for (int64_t l = 0; l + 1 < args.nodes; ++l) {
      const ChainEdge& edge = args.edge[l];
      const ChainNode& target = args.node[l + 1];
      const Buffers<C>&from = buffers[l], &to = buffers[l + 1];
      if (to.mu && target.prediction_known)
        load_samples(target.prediction, target.n, target.n, to.mu);
      else if (to.mu)
        Layout::product(edge.weight, target.n, args.node[l].n, from.a,
                        [&](int64_t i, int64_t rows, const Vec<C>* c) {
                          C* mu = to.mu + i * row;
                          for (int64_t q = 0; q < rows * width; ++q)
                            store(mu + q * w, c[q] + Layout::constant(edge.bias, i + q / width));
                          activate_all<C>(edge.after, mu, mu, rows * width);
                        });
      if (to.mu && !target.prediction_known)
        store_samples(to.mu, target.n, target.prediction);
      if (edge.gram) { // the error buffer is free to hold P (z' - b), for this once
        const int64_t rows = Layout::rows(target.n);
        for (int64_t i = 0; i < rows; ++i)
          for (int v = 0; v < width; ++v) {
            const int64_t at = i * row + v * w;
            const Vec<C> d = load(to.z + at) - Layout::constant(edge.bias, i);
            store(to.error + at, target.precision ? Layout::constant(target.precision, i) * d : d);
          }
        Layout::product(edge.transposed, args.node[l].n, target.n, to.error,
                        [&](int64_t i, int64_t rows, const Vec<C>* c) {
                          for (int64_t q = 0; q < rows * width; ++q)
                            store(from.drive + i * row + q * w, c[q]);
                        });
      }
    }
  }

  // Node l's error, where the step needs it.
  void predict(int64_t l) {
    const ChainNode& node = args.node[l];
    const Buffers<C>& b = buffers[l];
    if (!node.predicted)
      return;
    if (b.mu) {
      if (b.residual)
        for (int64_t i = 0; i < Layout::rows(node.n); ++i)
          for (int v = 0; v < width; ++v) {
            const int64_t at = i * row + v * w;
            const Vec<C> d = load(b.z + at) - load(b.mu + at);
            store(b.residual + at, d);
            if (b.error)
              store(b.error + at, node.precision ? Layout::constant(node.precision, i) * d : d);
          }
    } else if (const ChainEdge& edge = args.edge[l - 1]; !edge.gram) {
      Layout::product(edge.weight, node.n, args.node[l - 1].n, buffers[l - 1].a,
                      [&](int64_t i, int64_t rows, const Vec<C>* c) { err(l, i, rows, c); });
    }
    if (node.full_precision)
      Layout::product(node.full_precision, node.n, node.n, b.residual,
                      [&](int64_t i, int64_t rows, const Vec<C>* c) {
                        for (int64_t q = 0; q < rows * width; ++q) {
                          const int64_t at = i * row + q * w;
                          store(b.error + at, c[q]);
                          if (b.slope)
                            store(b.delta + at, c[q] * load(b.slope + at));
                        }
                      });
  }

  // Rows i to i + rows of node l's error, given those of the product that predicts it: one pass,
  // compiled for every activation.
  void err(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    with_kind(args.edge[l - 1].after.kind, [&](auto kind) { err_as<kind>(l, i, rows, c); });
  }

  template <Activation kind>
  __attribute__((noinline)) void err_as(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    const ChainNode& node = args.node[l];
    const ChainEdge& edge = args.edge[l - 1];
    const Nonlinearity after{kind, edge.after.parameter};
    const Buffers<C> b = buffers[l];
    const void* const bias = edge.bias;
    const void* const precision = node.precision;
    const bool full = static_cast<bool>(node.full_precision);
    int64_t at = i * row;
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < width; ++v, at += w) {
        const Vec<C> product = *c++ + Layout::constant(bias, i + r);
        const Vec<C> prediction = activate<C>(after, product);
        Vec<C> error = load(b.z + at) - prediction;
        if (b.residual)
          store(b.residual + at, error);
        const Vec<C> slopes = slope<C>(after, product, prediction);
        if (full) {
          if (b.slope)
            store(b.slope + at, slopes);
          continue;
        }
        if (precision)
          error *= Layout::constant(precision, i + r);
        if (b.delta != b.error)
          store(b.delta + at, error * slopes);
        store(b.error + at, error);
      }
  }

  // 1/2 (z - mu)^T P (z - mu) per sample
  void record(int64_t t) {
    for (int64_t l = 0; l < args.nodes; ++l) {
      C* out = static_cast<C*>(args.energies) + (t * args.nodes + l) * args.batch + first;
      double total[Layout::samples] = {};
      if (args.node[l].predicted)
        Layout::dot(buffers[l].residual, buffers[l].error, args.node[l].n, total);
      for (int64_t r = 0; r < count(); ++r)
        out[r] = static_cast<C>(0.5 * total[r]);
    }
  }

  // Updates node l. Nothing else that this step reads may change: other nodes' errors are there or
  // do not depend on it.
  void descend(int64_t l, bool fresh) {
    const ChainNode& node = args.node[l];
    Buffers<C>& b = buffers[l];
    if (!node.free)
      return;
    const ChainEdge* out =
        l + 1 < args.nodes && args.node[l + 1].predicted ? args.edge + l : nullptr;
    const auto step = [&](int64_t i, int64_t rows, const Vec<C>* feedback) {
      update(l, i, rows, feedback, fresh);
    };
    if (out && out->gram)
      Layout::product(out->gram, node.n, node.n, b.a, step);
    else if (out)
      Layout::product(out->transposed, node.n, args.node[l + 1].n, buffers[l + 1].delta, step);
    else
      for (int64_t i = 0; i < Layout::rows(node.n); i += kTile / width)
        step(i, smaller(kTile / width, Layout::rows(node.n) - i), nullptr);
    if (b.next) {
      C* const a = b.a;
      b.a = b.next;
      b.next = a;
    }
  }

  // z <- z - lr (error - before' feedback) and the activation of that, for rows i to i + rows
  void update(int64_t l, int64_t i, int64_t rows, const Vec<C>* feedback, bool fresh) {
    const Activation kind = feedback ? args.edge[l].before.kind : Activation::identity;
    with_kind(kind, [&](auto kind) { update_as<kind>(l, i, rows, feedback, fresh); });
  }

  template <Activation kind>
  __attribute__((noinline)) void update_as(int64_t l, int64_t i, int64_t rows,
                                           const Vec<C>* feedback, bool fresh) {
    const Nonlinearity before{kind, feedback ? args.edge[l].before.parameter : 0};
    const Buffers<C> b = buffers[l];
    const void* const precision = args.node[l].precision;
    C* const activations = !feedback || b.a == b.z ? nullptr : b.next ? b.next : b.a;
    const Vec<C> lr = splat(static_cast<C>(args.lr));
    const Vec<C> momentum = splat(static_cast<C>(args.momentum));
    const Vec<C> fraction = splat(static_cast<C>(1 - args.dampening));
    const bool nesterov = args.nesterov;
    int64_t at = i * row;
    for (int64_t r = 0; r < rows; ++r)
      for (int v = 0; v < width; ++v, at += w) {
        Vec<C> z = load(b.z + at), g{};
        if (b.error)
          g = load(b.error + at);
        else if (b.mu) {
          g = z - load(b.mu + at);
          if (precision)
            g *= Layout::constant(precision, i + r);
        }
        if (feedback) {
          Vec<C> back = *feedback++;
          if (b.drive)
            back = load(b.drive + at) - back;
          if constexpr (kind == Activation::identity)
            g -= back;
          else
            g = fnma(slope<C>(before, z, load(b.a + at)), back, g);
        }
        if (b.velocity) {
          const Vec<C> velocity = fresh ? g : fma(momentum, load(b.velocity + at), fraction * g);
          store(b.velocity + at, velocity);
          g = nesterov ? fma(momentum, velocity, g) : velocity;
        }
        z = fnma(lr, g, z);
        store(b.z + at, z);
        if (activations)
          store(activations + at, activate<C>(before, z));
      }
  }
};

// f(layout) for the layout of a kind of tile
template <class C, class F>
auto with_layout(TileKind kind, F f) {
  switch (kind) {
  case TileKind::wide2:
    return f(Wide<C, 2>{});
  case TileKind::wide1:
    return f(Wide<C, 1>{});
  case TileKind::thin4:
    return f(Thin<C, 4>{});
  case TileKind::thin1:
    return f(Thin<C, 1>{});
  }
  __builtin_unreachable();
}

template <class C>
int64_t packed_size(TileKind kind, int64_t rows, int64_t depth) {
  return with_layout<C>(kind, [&](auto layout) { return layout.packed_size(rows, depth); });
}

template <class C>
PackedMatrix pack(TileKind kind, const void* matrix, int64_t rows, int64_t depth,
                  int64_t row_stride, int64_t depth_stride, void* packed) {
  const Strided<C> m{static_cast<const C*>(matrix), row_stride, depth_stride};
  return with_layout<C>(
      kind, [&](auto layout) { return layout.pack(m, rows, depth, static_cast<C*>(packed)); });
}

template <class C>
int64_t workspace_size(const ChainArgs& args, TileKind kind) {
  return with_layout<C>(kind, [&](auto layout) {
    return lay_out<C, decltype(layout)>(args, nullptr, nullptr) * int64_t(sizeof(C)) +
           args.nodes * int64_t(sizeof(Buffers<C>));
  });
}

template <class C, class F>
void with_tile(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile, F f) {
  with_layout<C>(kind, [&](auto layout) {
    using Layout = decltype(layout);
    C* base = static_cast<C*>(workspace);
    auto* buffers = reinterpret_cast<Buffers<C>*>(base + lay_out<C, Layout>(args, base, nullptr));
    lay_out<C, Layout>(args, base, buffers);
    Tile<C, Layout> it{args, buffers, tile * Layout::samples};
    f(it);
  });
}

template <class C>
void run(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tile<C>(args, kind, workspace, tile, [](auto& it) { it.run(); });
}

template <class C>
void errors(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tile<C>(args, kind, workspace, tile, [](auto& it) { it.errors(); });
}

constexpr int64_t kDepth = 256; // samples of a panel, which stays in the first-level cache

// (Adds) rows i to i + rows of scale a^T b to `out`: a [batch, R] and the panel of b's columns
// [batch, 2 vectors], both contiguous.
template <class C, int R>
void outer_rows(const C* a, const C* panel, int64_t batch, int64_t rows, C scale, C* out, int64_t n,
                int64_t columns, bool add) {
  constexpr int w = kLanes<C>;
  Vec<C> sums[R * 2];
  Wide<C, 2>::template panel<R>(a, batch, panel, sums);
  for (int r = 0; r < smaller(R, rows); ++r)
    for (int v = 0; v < 2 && v * w < columns; ++v) {
      C* const to = out + r * n + v * w;
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

template <class C>
void outer(const void* a, const void* b, Nonlinearity f, int64_t batch, int64_t m, int64_t n,
           double scale, int64_t begin, int64_t end, void* panel, void* out) {
  constexpr int w = kLanes<C>;
  const C s = static_cast<C>(scale);
  C* const packed = static_cast<C*>(panel);
  for (int64_t j = begin; j < end; j += 2 * w) {
    const int64_t columns = smaller(2 * w, end - j);
    for (int64_t k = 0; k < batch || k == 0; k += kDepth) {
      const int64_t depth = smaller(kDepth, batch - k);
      pack_rows<C>({static_cast<const C*>(b) + k * n + j, 1, n}, 0, columns, 2 * w, depth, packed,
                   2 * w);
      activate_all<C>(f, packed, packed, 2 * depth);
      for (int64_t i = 0; i < m; i += kRows) {
        const int64_t height = smaller(kRows, round_up(m - i, kStep));
        const C* const rows = static_cast<const C*>(a) + i * batch + k * height;
        C* const to = static_cast<C*>(out) + i * n + j;
        if (height == kRows)
          outer_rows<C, kRows>(rows, packed, depth, m - i, s, to, n, columns, k > 0);
        else if (height == 2 * kStep)
          outer_rows<C, 2 * kStep>(rows, packed, depth, m - i, s, to, n, columns, k > 0);
        else
          outer_rows<C, kStep>(rows, packed, depth, m - i, s, to, n, columns, k > 0);
      }
    }
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

// A round of xxHash64 (Yann Collet's; its constants): a bijection of h and of word alike. A word is
// multiplied before it is added and after, so that neither sign bits nor other small differences of
// two words cancel.
constexpr uint64_t kPrime[] = {0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9};

template <class W>
PYROMANCY_INLINE W mixed(W h, W word) {
  h += word * kPrime[1];
  h = h << 31 | h >> 33;
  return h * kPrime[0];
}

// Four vectors of chains of rounds side by side, and one that takes what is left and all of them.
uint64_t content_hash(const void* bytes, int64_t count, uint64_t seed) {
  constexpr int w = kVectorBytes / 8, chains = 4;
  using Words64 = VecN<uint64_t, w>;
  const char* p = static_cast<const char*>(bytes);
  Words64 h[chains];
  for (int c = 0; c < chains; ++c)
    for (int i = 0; i < w; ++i)
      h[c][i] = seed + kPrime[0] * (c * w + i + 1);
  int64_t at = 0;
  for (; at + chains * kVectorBytes <= count; at += chains * kVectorBytes)
    for (int c = 0; c < chains; ++c) {
      Words64 word;
      __builtin_memcpy(&word, p + at + c * kVectorBytes, sizeof word);
      h[c] = mixed(h[c], word);
    }
  uint64_t result = mixed(seed, static_cast<uint64_t>(count));
  for (; at < count; at += 8) {
    uint64_t word = 0;
    __builtin_memcpy(&word, p + at, smaller(8, count - at));
    result = mixed(result, word);
  }
  for (int c = 0; c < chains; ++c)
    for (int i = 0; i < w; ++i)
      result = mixed(result, uint64_t{h[c][i]});
  // every bit of the last round reaches every other
  result = (result ^ result >> 33) * kPrime[1];
  result = (result ^ result >> 29) * kPrime[2];
  return result ^ result >> 32;
}

template <class C>
constexpr ChainKernels table() {
  return {kLanes<C>,     {2 * kLanes<C>, kLanes<C>, 4, 1},
          4 * kRows,     packed_size<C>,
          pack<C>,       workspace_size<C>,
          run<C>,        errors<C>,
          2 * kLanes<C>, 2 * kLanes<C> * kDepth,
          outer<C>,      sum_rows<C>,
          content_hash};
}

} // namespace

extern const ChainKernels chain_kernels[kDTypes] = {table<float>(), table<double>()};

} // namespace pyromancy::PYROMANCY_ISA
