#include "chain_kernel.h"

#include "activation.h"
#include "tiles.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

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

  // Loads the states and what else there is.
  void begin() {
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
      else if (b.mu && node.prediction_known)
        load_samples(node.prediction, node.n, node.n, b.mu);
      if (l > 0 &&
          args.edge[l - 1].gram) // the error buffer is free to hold P (z' - b), for this once
        for (int64_t i = 0; i < Layout::rows(node.n); ++i)
          for (int v = 0; v < width; ++v) {
            const int64_t at = i * row + v * w;
            const Vec<C> d = load(b.z + at) - Layout::constant(args.edge[l - 1].bias, i);
            store(b.error + at, node.precision ? Layout::constant(node.precision, i) * d : d);
          }
    }
  }

  void end(Aim aim) {
    for (int64_t l = 0; l < args.nodes; ++l) {
      const ChainNode& node = args.node[l];
      const Buffers<C>& b = buffers[l];
      if (l > 0 && b.mu && !node.prediction_known)
        store_samples(b.mu, node.n, node.prediction);
      if (aim == Aim::errors) {
        store_samples(b.error, node.n, node.error);
        store_samples(b.delta, node.n, node.delta);
        if (!node.square)
          continue;
        for (int64_t at = 0; at < Layout::rows(node.n) * row; at += w)
          store(b.residual + at, load(b.residual + at) * load(b.error + at));
        store_samples(b.residual, node.n, node.square);
      } else if (node.free) {
        store_samples(b.z, node.n, node.state);
        if (args.steps > 0) // velocities that are not resumed start with the first
          store_samples(b.velocity, node.n, node.velocity);
      }
    }
  }

  // Rows i to i + rows of a prediction that does not change, given those of its product.
  void predict_once(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    const ChainEdge& edge = args.edge[l - 1];
    C* const mu = buffers[l].mu + i * row;
    for (int64_t q = 0; q < rows * width; ++q)
      store(mu + q * w, c[q] + Layout::constant(edge.bias, i + q / width));
    activate_all<C>(edge.after, mu, mu, rows * width);
  }

  void drive(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    for (int64_t q = 0; q < rows * width; ++q)
      store(buffers[l].drive + i * row + q * w, c[q]);
  }

  void weigh(int64_t l, int64_t i, int64_t rows, const Vec<C>* c) {
    const Buffers<C>& b = buffers[l];
    for (int64_t q = 0; q < rows * width; ++q) {
      const int64_t at = i * row + q * w;
      store(b.error + at, c[q]);
      if (b.slope)
        store(b.delta + at, c[q] * load(b.slope + at));
    }
  }

  // The error for a prediction that does not change.
  void err_of_constant(int64_t l, Rows wanted) {
    const ChainNode& node = args.node[l];
    const Buffers<C>& b = buffers[l];
    for (int64_t i = wanted.begin; i < wanted.end; ++i)
      for (int v = 0; v < width; ++v) {
        const int64_t at = i * row + v * w;
        const Vec<C> d = load(b.z + at) - load(b.mu + at);
        store(b.residual + at, d);
        if (b.error)
          store(b.error + at, node.precision ? Layout::constant(node.precision, i) * d : d);
      }
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

  void turn(int64_t l) {
    Buffers<C>& b = buffers[l];
    C* const a = b.a;
    b.a = b.next;
    b.next = a;
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

// Consecutive tiles, whose workspaces lie one behind the other.
template <class C, class Layout>
struct Tiles {
  static constexpr int64_t width = Layout::width;

  const ChainArgs& args;
  char* const workspaces;
  Vec<C>* const partial;
  const int64_t first, count;
  const int64_t taken = lay_out<C, Layout>(args, nullptr, nullptr) * int64_t(sizeof(C));

  static int64_t workspace_size(const ChainArgs& args) {
    const int64_t bytes = lay_out<C, Layout>(args, nullptr, nullptr) * int64_t(sizeof(C)) +
                          args.nodes * int64_t(sizeof(Buffers<C>));
    return round_up(bytes, 64);
  }

  Tile<C, Layout> tile(int64_t t) const {
    char* const workspace = workspaces + t * round_up(taken + args.nodes * sizeof(Buffers<C>), 64);
    return {args, reinterpret_cast<Buffers<C>*>(workspace + taken), (first + t) * Layout::samples};
  }

  static int64_t rows(const ChainArgs& args, Stage s) {
    const bool whole = s.work == Work::turn || s.work == Work::record;
    return whole ? 1 : Layout::rows(args.node[s.node].n);
  }

  void begin() const {
    for (int64_t t = 0; t < count; ++t) {
      auto it = tile(t);
      lay_out<C, Layout>(args, reinterpret_cast<C*>(it.buffers) - taken / sizeof(C), it.buffers);
      it.begin();
    }
  }

  void stage(Stage s, Rows wanted) const {
    const int64_t l = s.node;
    const ChainNode& node = args.node[l];
    const auto multiply = [&](PackedMatrix matrix, int64_t source, C* Buffers<C>::* x, auto f) {
      Layout::product(
          matrix, node.n, args.node[source].n, wanted, count, partial,
          [&](int64_t t) { return tile(t).buffers[source].*x; },
          [&](int64_t t, int64_t i, int64_t rows, const Vec<C>* c) { f(tile(t), i, rows, c); });
    };
    switch (s.work) {
    case Work::predict_once:
      return multiply(args.edge[l - 1].weight, l - 1, &Buffers<C>::a,
                      [&](auto it, auto... c) { it.predict_once(l, c...); });
    case Work::drive:
      return multiply(args.edge[l].transposed, l + 1, &Buffers<C>::error,
                      [&](auto it, auto... c) { it.drive(l, c...); });
    case Work::err:
      if (node.prediction_varies)
        return multiply(args.edge[l - 1].weight, l - 1, &Buffers<C>::a,
                        [&](auto it, auto... c) { it.err(l, c...); });
      for (int64_t t = 0; t < count; ++t)
        tile(t).err_of_constant(l, wanted);
      return;
    case Work::weigh:
      return multiply(node.full_precision, l, &Buffers<C>::residual,
                      [&](auto it, auto... c) { it.weigh(l, c...); });
    case Work::descend: {
      const bool fresh = s.step == 0 && !args.resume;
      const bool fed = l + 1 < args.nodes && args.node[l + 1].predicted;
      const auto step = [&](auto it, auto... c) { it.update(l, c..., fresh); };
      if (fed && args.edge[l].gram)
        return multiply(args.edge[l].gram, l, &Buffers<C>::a, step);
      if (fed)
        return multiply(args.edge[l].transposed, l + 1, &Buffers<C>::delta, step);
      for (int64_t t = 0; t < count; ++t)
        tile(t).update(l, wanted.begin, wanted.end - wanted.begin, nullptr, fresh);
      return;
    }
    case Work::turn:
      for (int64_t t = 0; t < count; ++t)
        tile(t).turn(l);
      return;
    case Work::record:
      for (int64_t t = 0; t < count; ++t)
        tile(t).record(s.step);
    }
  }

  void end(Aim aim) const {
    for (int64_t t = 0; t < count; ++t)
      tile(t).end(aim);
  }

  void run(Aim aim) const {
    const auto whole = [&](Stage s) { stage(s, {0, rows(args, s)}); };
    begin();
    if (aim == Aim::inference)
      stages_of_inference(args, whole);
    else
      stages_of_errors(args, whole);
    end(aim);
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
int64_t packed_stride(TileKind kind, int64_t rows) {
  return with_layout<C>(kind, [&](auto layout) { return layout.packed_stride(rows); });
}

template <class C>
PackedMatrix as_it_is(TileKind kind, const void* matrix, int64_t rows, int64_t row_stride,
                      int64_t depth_stride, int64_t passes) {
  const Strided<C> m{static_cast<const C*>(matrix), row_stride, depth_stride};
  return with_layout<C>(kind, [&](auto layout) { return layout.as_it_is(m, rows, passes); });
}

template <class C>
void pack(TileKind kind, const void* matrix, int64_t rows, int64_t depth, int64_t row_stride,
          int64_t depth_stride, Rows wanted, void* packed) {
  const Strided<C> m{static_cast<const C*>(matrix), row_stride, depth_stride};
  with_layout<C>(
      kind, [&](auto layout) { layout.pack(m, rows, depth, wanted, static_cast<C*>(packed)); });
}

template <class C>
int64_t workspace_size(const ChainArgs& args, TileKind kind) {
  return with_layout<C>(
      kind, [&](auto layout) { return Tiles<C, decltype(layout)>::workspace_size(args); });
}

template <class C>
int64_t partial_size(TileKind kind, int64_t tiles) {
  return with_layout<C>(
      kind, [&](auto layout) { return tiles * layout.partial * int64_t(sizeof(Vec<C>)); });
}

template <class C, class F>
void with_tiles(const ChainArgs& args, TileKind kind, void* workspaces, void* partial, int64_t tile,
                int64_t tiles, F f) {
  with_layout<C>(kind, [&](auto layout) {
    f(Tiles<C, decltype(layout)>{args, static_cast<char*>(workspaces),
                                 static_cast<Vec<C>*>(partial), tile, tiles});
  });
}

template <class C>
void run(const ChainArgs& args, TileKind kind, Aim aim, void* workspace, void* partial,
         int64_t tile) {
  with_tiles<C>(args, kind, workspace, partial, tile, 1, [&](auto it) { it.run(aim); });
}

template <class C>
void begin(const ChainArgs& args, TileKind kind, void* workspace, int64_t tile) {
  with_tiles<C>(args, kind, workspace, nullptr, tile, 1, [](auto it) { it.begin(); });
}

template <class C>
void stage(const ChainArgs& args, TileKind kind, Stage stage, Rows wanted, void* workspaces,
           void* partial, int64_t tile, int64_t tiles) {
  with_tiles<C>(args, kind, workspaces, partial, tile, tiles,
                [&](auto it) { it.stage(stage, wanted); });
}

template <class C>
void end(const ChainArgs& args, TileKind kind, Aim aim, void* workspace, int64_t tile) {
  with_tiles<C>(args, kind, workspace, nullptr, tile, 1, [&](auto it) { it.end(aim); });
}

template <class C>
int64_t rows(const ChainArgs& args, TileKind kind, Stage stage) {
  return with_layout<C>(kind,
                        [&](auto layout) { return Tiles<C, decltype(layout)>::rows(args, stage); });
}

constexpr int64_t kDepth = 256; // samples of a panel, which stays in the first-level cache

// (Adds) rows i to i + rows of scale a^T b to `out`: a [batch, R] and the panel of b's columns
// [batch, 2 vectors], both contiguous.
template <class C, int R>
void outer_rows(const C* a, const C* panel, int64_t batch, int64_t rows, C scale, C* out, int64_t n,
                int64_t columns, bool add) {
  constexpr int w = kLanes<C>;
  Vec<C> sums[R * 2];
  Wide<C, 2>::template multiply<R>(a, 1, R, batch, panel, false, sums);
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
  using Thin4 = Thin<C, 4>;
  using Thin1 = Thin<C, 1>;
  return {kLanes<C>,
          {2 * kLanes<C>, kLanes<C>, 4, 1},
          {kRows, kRows, Thin4::block, Thin1::block},
          4 * kRows,
          packed_size<C>,
          packed_stride<C>,
          as_it_is<C>,
          pack<C>,
          workspace_size<C>,
          partial_size<C>,
          run<C>,
          begin<C>,
          stage<C>,
          end<C>,
          rows<C>,
          2 * kLanes<C>,
          2 * kLanes<C> * kDepth,
          outer<C>,
          sum_rows<C>,
          content_hash};
}

} // namespace

extern const ChainKernels chain_kernels[kDTypes] = {table<float>(), table<double>()};

} // namespace pyromancy::PYROMANCY_ISA
