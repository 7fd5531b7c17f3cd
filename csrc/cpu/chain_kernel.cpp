#include "chain_kernel.h"

#include "activation.h"
#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

// A register tile of kRows x kVectors accumulators. A matrix's last panel has fewer rows, but a
// multiple of kStep.
constexpr int kVectors = 2;
constexpr int kRows = kVectorBytes == 64 ? 12 : 6;
constexpr int kStep = kRows / 3;

int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

int64_t packed_size(int64_t rows, int64_t depth) {
  return round_up(rows, kStep) * depth;
}

// Panels of kRows rows, in each of which the elements of a column lie side by side.
template <class C>
void pack(const void* matrix, int64_t rows, int64_t depth, int64_t row_stride, int64_t depth_stride,
          void* packed) {
  const C* w = static_cast<const C*>(matrix);
  C* out = static_cast<C*>(packed);
  for (int64_t i = 0; i < rows; i += kRows) {
    const int64_t height = smaller(kRows, round_up(rows - i, kStep));
    const int64_t filled = smaller(height, rows - i);
    for (int64_t k = 0; k < depth; ++k, out += height) {
      const C* column = w + i * row_stride + k * depth_stride;
      for (int64_t r = 0; r < height; ++r)
        out[r] = r < filled ? column[r * row_stride] : C(0);
    }
  }
}

template <class C, int V>
using Lanes = Vec<C>[V];

// f(i, (A x)[i]) for the rows i of a packed matrix A [rows, depth]; x [depth, lanes]. Every element
// of the product is one chain of multiply-adds over k, whatever the tile around it.
template <class C, int V, int R, class F>
inline __attribute__((always_inline)) void panel_product(const C* a, int64_t i, int64_t rows,
                                                         int64_t depth, const C* x, F f) {
  Vec<C> c[R][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<C> b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      b[v] = load(x + (k * V + v) * kLanes<C>);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const Vec<C> w = splat<C>(a[k * R + r]);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        c[r][v] = fma(w, b[v], c[r][v]);
    }
  }
  // By way of memory, so that f is compiled once and not R times.
  Vec<C> sums[R][V];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v)
      sums[r][v] = c[r][v];
  for (int64_t r = 0; r < smaller(R, rows - i); ++r)
    f(i + r, sums[r]);
}

template <class C, int V, class F>
void product(const void* packed, int64_t rows, int64_t depth, const C* x, F f) {
  const C* a = static_cast<const C*>(packed);
  int64_t i = 0;
  for (; i + kRows <= round_up(rows, kStep); i += kRows)
    panel_product<C, V, kRows>(a + i * depth, i, rows, depth, x, f);
  if (i + 2 * kStep <= round_up(rows, kStep))
    panel_product<C, V, 2 * kStep>(a + i * depth, i, rows, depth, x, f);
  else if (i < rows)
    panel_product<C, V, kStep>(a + i * depth, i, rows, depth, x, f);
}

// What a tile keeps for a node, each [n, lanes]; null where the chain never needs it.
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

bool predicts_freely(const ChainArgs& args, int64_t l) {
  return l > 0 && args.node[l - 1].free;
}

// Hands out the buffers of every node from `base` on and returns how many elements they take.
template <class C>
int64_t lay_out(const ChainArgs& args, int64_t lanes, C* base, Buffers<C>* buffers) {
  int64_t used = 0;
  for (int64_t l = 0; l < args.nodes; ++l) {
    const ChainNode& node = args.node[l];
    const ChainEdge* in = l > 0 ? args.edge + l - 1 : nullptr;
    const ChainEdge* out = l + 1 < args.nodes ? args.edge + l : nullptr;
    const auto take = [&](bool wanted) -> C* {
      if (!wanted)
        return nullptr;
      C* p = base + used;
      used += node.n * lanes;
      return p;
    };
    const bool gram = out && out->gram;
    const bool varies = node.predicted && predicts_freely(args, l); // its prediction does
    const bool bent = varies && in->after.kind != Activation::identity;
    const bool full = node.predicted && node.full_precision;
    Buffers<C> b{};
    b.z = take(true);
    b.a = out && (gram || out->before.kind != Activation::identity) ? take(true) : b.z;
    b.next = take(gram);
    b.mu = take(node.predicted && !varies);
    b.residual = take(node.predicted && (full || args.energies));
    b.error = take(varies || full || (node.predicted && args.energies));
    b.delta = bent ? take(true) : b.error;
    b.slope = take(bent && full);
    b.drive = take(gram);
    b.velocity = take(node.velocity != nullptr);
    if (buffers)
      buffers[l] = b;
  }
  return used;
}

template <class C>
int64_t workspace_size(const ChainArgs& args, int vectors) {
  return lay_out<C>(args, vectors * kLanes<C>, nullptr, nullptr) * int64_t(sizeof(C)) +
         args.nodes * int64_t(sizeof(Buffers<C>));
}

template <class C, int V>
struct Tile {
  static constexpr int w = kLanes<C>;
  static constexpr int64_t lanes = V * w;

  const ChainArgs& args;
  const Buffers<C>* buffers;
  const int64_t first; // sample

  int count(int v) const {
    const int64_t left = args.batch - first - v * w;
    return static_cast<int>(smaller(w, left > 0 ? left : 0));
  }

  // Samples [B, n] into lanes; lanes without a sample read zero.
  void load_samples(const void* from, int64_t stride, int64_t n, C* to) const {
    for (int v = 0; v < V; ++v) {
      const int rows = count(v);
      const C* row = static_cast<const C*>(from) + (first + v * w) * stride;
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        Vec<C> square[w] = {};
        for (int r = 0; r < rows; ++r)
          square[r] = load(row + r * stride + j, extent);
        transpose<C>(square);
        for (int q = 0; q < w && j + q < n; ++q)
          store(to + (j + q) * lanes + v * w, square[q]);
      });
    }
  }

  void store_samples(const C* from, int64_t n, void* to) const {
    for (int v = 0; v < V; ++v) {
      const int rows = count(v);
      C* row = static_cast<C*>(to) + (first + v * w) * n;
      for_vectors<C>(n, [&](int64_t j, auto extent) {
        Vec<C> square[w] = {};
        for (int q = 0; q < w && j + q < n; ++q)
          square[q] = load(from + (j + q) * lanes + v * w);
        transpose<C>(square);
        for (int r = 0; r < rows; ++r)
          store(row + r * n + j, square[r], extent);
      });
    }
  }

  // f(i, v, offset) over the vectors of a buffer [n, lanes]
  template <class F>
  static void for_each(int64_t n, F f) {
    for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v)
        f(i, v, i * lanes + v * w);
  }

  static Vec<C> diagonal(const ChainNode& node, int64_t i) {
    return splat<C>(node.precision ? static_cast<const C*>(node.precision)[i] : C(1));
  }

  static Vec<C> bias(const ChainEdge& edge, int64_t i) {
    return splat<C>(edge.bias ? static_cast<const C*>(edge.bias)[i] : C(0));
  }

  void run() {
    prepare();
    for (int64_t t = 0; t < args.steps; ++t) {
      predict(t);
      if (args.energies)
        record(t);
      descend(t == 0 && !args.resume);
    }
    for (int64_t l = 0; l < args.nodes; ++l)
      if (args.node[l].free) {
        store_samples(buffers[l].z, args.node[l].n, args.node[l].state);
        if (buffers[l].velocity)
          store_samples(buffers[l].velocity, args.node[l].n, args.node[l].velocity);
      }
  }

  // Loads the states and computes what no E-step changes.
  void prepare() {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<C>& b = buffers[l];
      load_samples(node.state, node.n, node.n, b.z);
      if (b.velocity && args.resume)
        load_samples(node.velocity, node.n, node.n, b.velocity);
      if (b.a != b.z)
        for_each(node.n, [&](int64_t, int, int64_t at) {
          store(b.a + at, activate<C>(args.edge[l].before, load(b.z + at)));
        });
      if (l == 0 && b.mu)
        load_samples(args.prior, args.prior_stride, node.n, b.mu);
    }
    for (int64_t l = 0; l + 1 < args.nodes; ++l) {
      const ChainEdge& edge = args.edge[l];
      const ChainNode& target = args.node[l + 1];
      const Buffers<C>&from = buffers[l], &to = buffers[l + 1];
      if (to.mu) {
        product<C, V>(
            edge.weight, target.n, args.node[l].n, from.a, [&](int64_t i, Lanes<C, V>& c) {
              for (int v = 0; v < V; ++v)
                store(to.mu + i * lanes + v * w, activate<C>(edge.after, c[v] + bias(edge, i)));
            });
        if (edge.prediction)
          store_samples(to.mu, target.n, edge.prediction);
      }
      if (edge.gram) { // the error buffer is free to hold P (z' - b), for this once
        for_each(target.n, [&](int64_t i, int, int64_t at) {
          store(to.error + at, diagonal(target, i) * (load(to.z + at) - bias(edge, i)));
        });
        product<C, V>(edge.transposed, args.node[l].n, target.n, to.error,
                      [&](int64_t i, Lanes<C, V>& c) {
                        for (int v = 0; v < V; ++v)
                          store(from.drive + i * lanes + v * w, c[v]);
                      });
      }
    }
  }

  // Errors of all nodes whose error the step needs.
  void predict(int64_t) {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<C>& b = buffers[l];
      if (!node.predicted)
        continue;
      if (b.mu) {
        if (b.residual)
          for_each(node.n, [&](int64_t i, int, int64_t at) {
            const Vec<C> d = load(b.z + at) - load(b.mu + at);
            store(b.residual + at, d);
            if (b.error)
              store(b.error + at, diagonal(node, i) * d);
          });
      } else if (!args.edge[l - 1].gram) {
        const ChainEdge& edge = args.edge[l - 1];
        product<C, V>(edge.weight, node.n, args.node[l - 1].n, buffers[l - 1].a,
                      [&](int64_t i, Lanes<C, V>& c) {
                        const Vec<C> offset = bias(edge, i), p = diagonal(node, i);
                        for (int v = 0; v < V; ++v) {
                          const int64_t at = i * lanes + v * w;
                          const Vec<C> h = c[v] + offset;
                          const Vec<C> mu = activate<C>(edge.after, h);
                          const Vec<C> d = load(b.z + at) - mu;
                          if (b.residual)
                            store(b.residual + at, d);
                          if (b.slope)
                            store(b.slope + at, slope<C>(edge.after, h, mu));
                          if (!node.full_precision) {
                            store(b.error + at, p * d);
                            if (b.delta != b.error)
                              store(b.delta + at, p * d * slope<C>(edge.after, h, mu));
                          }
                        }
                      });
      }
      if (node.full_precision)
        product<C, V>(node.full_precision, node.n, node.n, b.residual,
                      [&](int64_t i, Lanes<C, V>& c) {
                        for (int v = 0; v < V; ++v) {
                          const int64_t at = i * lanes + v * w;
                          store(b.error + at, c[v]);
                          if (b.slope)
                            store(b.delta + at, c[v] * load(b.slope + at));
                        }
                      });
    }
  }

  // 1/2 (z - mu)^T P (z - mu) per sample
  void record(int64_t t) {
    for (int64_t l = 0; l < args.nodes; ++l) {
      C* out = static_cast<C*>(args.energies) + (t * args.nodes + l) * args.batch + first;
      double total[lanes] = {};
      if (args.node[l].predicted)
        for_each(args.node[l].n, [&](int64_t, int v, int64_t at) {
          add_to(total + v * w, load(buffers[l].residual + at) * load(buffers[l].error + at));
        });
      for (int64_t r = 0; r < smaller(lanes, args.batch - first); ++r)
        out[r] = static_cast<C>(0.5 * total[r]);
    }
  }

  void descend(bool fresh) {
    const C lr = static_cast<C>(args.lr), momentum = static_cast<C>(args.momentum);
    const C keep = static_cast<C>(1 - args.dampening);
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<C>& b = buffers[l];
      if (!node.free)
        continue;
      const ChainEdge* out =
          l + 1 < args.nodes && args.node[l + 1].predicted ? args.edge + l : nullptr;
      C* const activations = b.next ? b.next : b.a;
      // z <- z - lr (error - feedback), and its activation
      const auto update = [&](int64_t i, int v, Vec<C> feedback) {
        const int64_t at = i * lanes + v * w;
        const Vec<C> z = load(b.z + at);
        Vec<C> g = splat<C>(0);
        if (b.error)
          g = load(b.error + at);
        else if (b.mu)
          g = diagonal(node, i) * (z - load(b.mu + at));
        if (out)
          g = fma(-slope<C>(out->before, z, load(b.a + at)), feedback, g);
        if (b.velocity) {
          const Vec<C> velocity =
              fresh ? g : fma(splat<C>(momentum), load(b.velocity + at), keep * g);
          store(b.velocity + at, velocity);
          g = args.nesterov ? fma(splat<C>(momentum), velocity, g) : velocity;
        }
        const Vec<C> next = fma(splat<C>(-lr), g, z);
        store(b.z + at, next);
        if (activations != b.z)
          store(activations + at, activate<C>(args.edge[l].before, next));
      };
      if (!out)
        for_each(node.n, [&](int64_t i, int v, int64_t) { update(i, v, splat<C>(0)); });
      else if (out->gram)
        product<C, V>(out->gram, node.n, node.n, b.a, [&](int64_t i, Lanes<C, V>& c) {
          for (int v = 0; v < V; ++v)
            update(i, v, load(b.drive + i * lanes + v * w) - c[v]);
        });
      else
        product<C, V>(out->transposed, node.n, args.node[l + 1].n, buffers[l + 1].delta,
                      [&](int64_t i, Lanes<C, V>& c) {
                        for (int v = 0; v < V; ++v)
                          update(i, v, c[v]);
                      });
      if (b.next)
        swap_activations(l);
    }
  }

  void swap_activations(int64_t l) {
    Buffers<C>& b = const_cast<Buffers<C>&>(buffers[l]);
    C* const a = b.a;
    b.a = b.next;
    b.next = a;
  }
};

template <class C>
void run(const ChainArgs& args, int vectors, void* workspace, int64_t begin, int64_t end) {
  const int64_t lanes = vectors * kLanes<C>;
  C* base = static_cast<C*>(workspace);
  const int64_t elements = lay_out<C>(args, lanes, base, nullptr);
  auto* buffers = reinterpret_cast<Buffers<C>*>(base + elements);
  for (int64_t tile = begin; tile < end; ++tile) {
    lay_out<C>(args, lanes, base, buffers);
    if (vectors == 1)
      Tile<C, 1>{args, buffers, tile * lanes}.run();
    else
      Tile<C, kVectors>{args, buffers, tile * lanes}.run();
  }
}

template <class C>
constexpr ChainKernels table() {
  return {kLanes<C>, kVectors, packed_size, pack<C>, workspace_size<C>, run<C>};
}

} // namespace

extern const ChainKernels chain_kernels[kDTypes] = {table<float>(), table<double>()};

} // namespace pyromancy::PYROMANCY_ISA
