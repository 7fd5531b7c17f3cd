#include "chain_tile_kernel.h"

#include "../activate.h"
#include "../laws/laws.h"
#include "../rules/descent.h"
#include "cluster.h"
#include "interpret.h"
#include "launch.h"
#include "mma.h"

namespace pyromancy::cuda {
namespace {

static_assert(kWarps * kWarp == kThreads);

// Not inlined: ten functions at every use would be most of the kernel's code.
__noinline__ __device__ float2 activate_pair(Activation kind, float parameter, float2 x) {
  const Nonlinearity f{kind, parameter};
  return make_float2(activate(f, x.x), activate(f, x.y));
}
__noinline__ __device__ float2 slope_pair(Activation kind, float parameter, float2 x) {
  const Nonlinearity f{kind, parameter};
  return make_float2(slope(f, x.x, activate(f, x.x)), slope(f, x.y, activate(f, x.y)));
}

__noinline__ __device__ OfLaw<float> of_own_law(const Expression& law, float z, float mu,
                                                bool energy) {
  return of_expression(law, z, mu, 0.0f, energy); // who has a theta does not come here
}

__device__ inline float2 activate(const Nonlinearity& f, float2 x) {
  if (f.kind == Activation::identity)
    return x;
  return activate_pair(f.kind, static_cast<float>(f.parameter), x);
}

// f'(x) y
__device__ inline float2 scale_by_slope(const Nonlinearity& f, float2 x, float2 y) {
  if (f.kind == Activation::identity)
    return y;
  const float2 slopes = slope_pair(f.kind, static_cast<float>(f.parameter), x);
  return make_float2(slopes.x * y.x, slopes.y * y.y);
}

// What a kernel's thread knows of its tile of samples.
template <int M>
struct Tile {
  static constexpr int slice = kNeurons * kSamples * M; // floats of a tile of neurons

  const TileArgs& a;
  Cluster cluster;
  float* shared;
  int rank;
  int64_t first; // sample

  __device__ Tile(const TileArgs& args, float* memory)
      : a(args), cluster(args.cluster), shared(memory), rank(cluster.rank()),
        first(blockIdx.x / args.cluster * static_cast<int64_t>(kSamples * M)) {}

  // Two neighbouring neurons of a sample, by their place in a slice.
  struct Pair {
    int at, own, sample, neuron; // own: among the block's neurons
  };

  // f(pair) for all of a node's neurons that the block owns
  template <class F>
  __device__ void for_pairs(const TileNode& node, F f) const {
    for (int i = threadIdx.x; i < node.tiles * slice / 2; i += kThreads) {
      const int at = 2 * i, tile = at / slice, within = at % slice;
      const int own = tile * kNeurons + within % kNeurons;
      f(Pair{at, own, within / kNeurons, rank * node.tiles * kNeurons + own});
    }
  }

  __device__ float2& pair(int offset, const Pair& p) const {
    return *reinterpret_cast<float2*>(shared + offset + p.at);
  }

  // A product's value, its parts added from the first to the last.
  __device__ float2 sum_of(const TileProduct& product, const Pair& p) const {
    float2 sum = pair(product.out, p);
    for (int part = 1; part < product.parts; ++part) {
      const float2 more = pair(product.out + part * product.tiles * slice, p);
      sum.x += more.x;
      sum.y += more.y;
    }
    return sum;
  }

  // Into the panel at `offset` of every block of the cluster.
  __device__ void publish(int offset, const TileNode& node, const Pair& p, float2 x) const {
    if (p.neuron >= node.n)
      x.x = 0; // or infinity times a padding zero would be NaN
    if (p.neuron + 1 >= node.n)
      x.y = 0;
    const int row = p.sample % kSamples, k = p.neuron % kDepth;
    const int block = p.neuron / kDepth * M + p.sample / kSamples;
    const int at = block * kSamples * kDepth + row / 8 * kBlock + (row % 8 * 4 + k / 4) * 4 + k % 4;
    float2* const to = reinterpret_cast<float2*>(shared + offset + at);
    for (int r = 0; r < cluster.size(); ++r)
      *cluster.peer(to, r) = x;
  }

  // The margin that an odd number of neurons' tiles leaves in a panel, where with several rounds
  // another one's numbers lie: times the matrix's zeros, infinity would be NaN.
  __device__ void clear_margin(int offset, const TileNode& node) const {
    const int neurons = node.tiles * cluster.size() * kNeurons;
    if (offset == kAbsent || neurons % kDepth == 0)
      return;
    float* const block = shared + offset + neurons / kDepth * M * kSamples * kDepth;
    for (int i = threadIdx.x; i < M * kSamples * kNeurons; i += kThreads) {
      const int row = i / kNeurons, k = kNeurons + i % kNeurons;
      block[row / 8 * kBlock + (row % 8 * 4 + k / 4) * 4 + k % 4] = 0;
    }
  }

  __device__ void clear_margins(int round) const {
    for (int l = 0; l < a.nodes; ++l) {
      const TileNode& node = a.node[l];
      if (node.move_round == round)
        clear_margin(node.h, node);
      if (node.error_round == round) {
        clear_margin(node.d, node);
        clear_margin(node.residual, node);
      }
    }
  }

  __device__ float2 of_columns(int offset, const Pair& p, float otherwise) const {
    if (offset == kAbsent)
      return make_float2(otherwise, otherwise);
    return *reinterpret_cast<const float2*>(shared + offset + p.own);
  }

  // ---- between device memory and shared memory

  __device__ void load_slice(int offset, const TileNode& node, const float* from, int64_t row) {
    if (offset != kAbsent)
      for_pairs(node, [&](const Pair& p) {
        float2 x = make_float2(0, 0);
        if (first + p.sample < a.batch) {
          const float* const at = from + (first + p.sample) * row + p.neuron;
          if (p.neuron < node.n)
            x.x = at[0];
          if (p.neuron + 1 < node.n)
            x.y = at[1];
        }
        pair(offset, p) = x;
      });
  }

  __device__ void store_slice(int offset, const TileNode& node, float* to) const {
    for_pairs(node, [&](const Pair& p) { store_pair(node, p, to, pair(offset, p)); });
  }

  __device__ void store_pair(const TileNode& node, const Pair& p, float* to, float2 x) const {
    if (first + p.sample >= a.batch)
      return;
    float* const at = to + (first + p.sample) * node.n + p.neuron;
    if (p.neuron < node.n)
      at[0] = x.x;
    if (p.neuron + 1 < node.n)
      at[1] = x.y;
  }

  __device__ void load_columns(int offset, const TileNode& node, const float* from) {
    if (offset == kAbsent)
      return;
    const int own = node.tiles * kNeurons;
    for (int i = threadIdx.x; i < own; i += kThreads)
      shared[offset + i] = from && rank * own + i < node.n ? from[rank * own + i] : 0;
  }

  __device__ void load_samples(int offset, const float* from) {
    if (offset != kAbsent)
      for (int i = threadIdx.x; i < kSamples * M; i += kThreads)
        shared[offset + i] = first + i < a.batch ? from[first + i] : 0;
  }

  __device__ void load_all() {
    for (int i = threadIdx.x; i < a.shared; i += kThreads)
      shared[i] = 0;
    __syncthreads();
    for (int i = 0; i < a.phase[a.rounds - 1][3]; ++i) {
      const TileProduct& product = a.product[i];
      if (product.resident == kAbsent)
        continue;
      const int share = product.tiles * product.blocks * kBlock / 4;
      const float4* const from = reinterpret_cast<const float4*>(product.packed) + rank * share;
      float4* const to = reinterpret_cast<float4*>(shared + product.resident);
      for (int k = threadIdx.x; k < share; k += kThreads)
        to[k] = from[k];
    }
    for (int l = 0; l < a.nodes; ++l) {
      const TileNode& node = a.node[l];
      load_slice(node.z, node, node.state, node.n);
      load_slice(node.mu, node, node.constant, node.constant_row);
      load_slice(node.constant_feedback_at, node, node.constant_feedback, node.n);
      load_slice(node.v, node, node.velocity, node.n);
      load_columns(node.bias_at, node, node.bias);
      load_columns(node.rate_at, node, node.rate);
      load_samples(node.samples_at, node.sample_weights);
    }
    cluster.sync(); // panels are zero everywhere, before anyone writes into another's
  }

  // ---- the products of a phase

  template <Precision precision>
  __device__ void multiply(int round, int phase) const {
    const int warp = threadIdx.x / kWarp;
    int index = a.phase[round][phase];
    for (int unit = warp; unit < a.units[round][phase]; unit += kWarps) {
      while (index + 1 < a.phase[round][phase + 1] && unit >= a.product[index + 1].units)
        ++index;
      const TileProduct& product = a.product[index];
      const int group = (unit - product.units) % product.groups;
      const int part = (unit - product.units) / product.groups;
      if (product.resident == kAbsent)
        multiply_unit<precision>(product, group, part,
                                 product.packed +
                                     int64_t{rank} * product.tiles * product.blocks * kBlock);
      else
        multiply_unit<precision>(product, group, part, shared + product.resident);
    }
  }

  template <Precision precision>
  __device__ void multiply_unit(const TileProduct& product, int group, int part,
                                const float* matrix) const {
    const int lane = threadIdx.x % kWarp;
    const int begin = product.blocks * part / product.parts;
    const int end = product.blocks * (part + 1) / product.parts;
    const int tile = group * kGroup;
    // the second tile of the last group may not exist: then the first is computed twice
    const int other = tile + 1 < product.tiles ? tile + 1 : tile;
    const float* b_at[kGroup] = {matrix + tile * product.blocks * kBlock + lane * 4,
                                 matrix + other * product.blocks * kBlock + lane * 4};
    const float* const a_at = shared + product.panel + lane * 4;
    Sums sums[M][kGroup] = {}, small[M][kGroup] = {};
#pragma unroll 2
    for (int block = begin; block < end; ++block) {
      float b[kGroup][4];
#pragma unroll
      for (int g = 0; g < kGroup; ++g)
        load<4>(b[g], b_at[g] + block * kBlock);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const float* const at = a_at + (block * M + m) * kSamples * kDepth;
        float own[2][4];
        load<4>(own[0], at);
        load<4>(own[1], at + kBlock);
#pragma unroll
        for (int g = 0; g < kGroup; ++g)
          multiply_add<precision>(sums[m][g], small[m][g], own, b[g]);
      }
    }
    const int row = lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (g > 0 && other == tile)
        break;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        float* const to = shared + product.out + (part * product.tiles + tile + g) * slice +
                          (m * kSamples + row) * kNeurons + column;
        const float* const c = sums[m][g].c;
        const float* const s = small[m][g].c;
        *reinterpret_cast<float2*>(to) = make_float2(c[0] + s[0], c[1] + s[1]);
        *reinterpret_cast<float2*>(to + 8 * kNeurons) = make_float2(c[2] + s[2], c[3] + s[3]);
      }
    }
  }

  // ---- errors

  __device__ void publish_states(int round) const {
    for (int l = 0; l < a.nodes; ++l) {
      const TileNode& node = a.node[l];
      if (node.h != kAbsent && node.move_round == round)
        for_pairs(node, [&](const Pair& p) {
          publish(node.h, node, p, activate(node.before, pair(node.z, p)));
        });
    }
  }

  // W before(z) + b of the edge into a node
  __device__ float2 input_of(const TileNode& node, const Pair& p) const {
    const float2 sum = sum_of(a.product[node.into], p), b = of_columns(node.bias_at, p, 0);
    return make_float2(sum.x + b.x, sum.y + b.y);
  }

  __device__ float2 prediction_of(const TileNode& node, const Pair& p) const {
    return node.into == kAbsent ? pair(node.mu, p) : activate(node.after, input_of(node, p));
  }

  // The weight of a pair's sample.
  __device__ float weight_of(const TileNode& node, const Pair& p) const {
    return node.samples_at == kAbsent ? 1 : shared[node.samples_at + p.sample];
  }

  // What a law's formulas take of two neurons.
  struct Elements {
    float2 z, mu, rate;
    float weight;

    template <class F>
    __device__ float2 of(F formula) const {
      return make_float2(formula(z.x, mu.x, rate.x, weight), formula(z.y, mu.y, rate.y, weight));
    }
  };

  __device__ Elements elements(const TileNode& node, const Pair& p, float2 mu) const {
    const float2 rate = of_columns(node.rate_at, p, 1);
    const float weight = weight_of(node, p);
    return {pair(node.z, p), mu, make_float2(weight * rate.x, weight * rate.y),
            node.weight * weight};
  }

  // Keeps what a node's law pulls with, and publishes what the feedback is made of.
  __device__ void keep_error(const TileNode& node, const Pair& p, float2 pull, float2 push) const {
    if (node.e != kAbsent)
      pair(node.e, p) = pull;
    if (node.d == kAbsent)
      return;
    if (node.after.kind != Activation::identity)
      push = scale_by_slope(node.after, input_of(node, p), push);
    publish(node.d, node, p, push);
  }

  // f(node) for the nodes of a round that compute errors
  template <class F>
  __device__ void for_errors(int round, F f) const {
    for (int l = 0; l < a.nodes; ++l)
      if (a.node[l].computes_error && a.node[l].error_round == round)
        f(a.node[l]);
  }

  __device__ void find_errors(int round) const {
    for_errors(round, [&](const TileNode& node) {
      if (node.weigh != kAbsent)
        return find_residuals(node);
      if (node.own_law != kAbsent)
        return find_own_errors(node);
      with_formulas(node.law, node.law_parameter, [&](auto law) {
        for_pairs(node, [&](const Pair& p) {
          const Elements x = elements(node, p, prediction_of(node, p));
          if (node.deviation != kAbsent)
            pair(node.deviation, p) = x.of([&](auto... of) { return law.deviation(of...); });
          keep_error(node, p, x.of([&](auto... of) { return law.pull(of...); }),
                     x.of([&](auto... of) { return law.push(of...); }));
        });
      });
    });
  }

  // What a law of one's own makes of two neurons, but for its weight.
  struct OwnErrors {
    float2 pull, push, deviation;
  };

  __device__ OwnErrors own_errors(const TileNode& node, const Elements& x, bool energy) const {
    const Expression& law = a.own_law[node.own_law];
    const OfLaw<float> l = of_own_law(law, x.z.x, x.mu.x, energy),
                       r = of_own_law(law, x.z.y, x.mu.y, energy);
    return {make_float2(l.pull * x.rate.x, r.pull * x.rate.y),
            make_float2(l.push * x.rate.x, r.push * x.rate.y),
            make_float2(l.deviation * x.rate.x, r.deviation * x.rate.y)};
  }

  __device__ void find_own_errors(const TileNode& node) const {
    for_pairs(node, [&](const Pair& p) {
      const bool energy = node.deviation != kAbsent;
      const Elements x = elements(node, p, prediction_of(node, p));
      const OwnErrors e = own_errors(node, x, energy);
      if (energy)
        pair(node.deviation, p) = e.deviation;
      keep_error(node, p, e.pull, e.push);
    });
  }

  // What a precision matrix is multiplied with.
  __device__ void find_residuals(const TileNode& node) const {
    for_pairs(node, [&](const Pair& p) {
      const float2 z = pair(node.z, p), mu = prediction_of(node, p);
      const float2 residual = make_float2(subtract(z.x, mu.x), subtract(z.y, mu.y));
      if (node.deviation != kAbsent)
        pair(node.deviation, p) = residual;
      publish(node.residual, node, p, residual);
    });
  }

  __device__ void set_predictions(int round) const {
    for (int l = 0; l < a.nodes; ++l) {
      const TileNode& node = a.node[l];
      if (node.swept && node.error_round == round)
        for_pairs(node, [&](const Pair& p) {
          pair(node.z, p) = activate(node.after, input_of(node, p));
        });
    }
  }

  __device__ void find_weighed_errors(int round) const {
    for_errors(round, [&](const TileNode& node) {
      if (node.weigh == kAbsent)
        return;
      for_pairs(node, [&](const Pair& p) {
        float2 e = sum_of(a.product[node.weigh], p);
        const float weight = weight_of(node, p);
        e = make_float2(weight * e.x, weight * e.y);
        if (node.deviation != kAbsent) {
          float2& x = pair(node.deviation, p); // the residual
          x = make_float2(0.5f * gaussian::twice_energy_by_pull(x.x, e.x),
                          0.5f * gaussian::twice_energy_by_pull(x.y, e.y));
        }
        keep_error(node, p, e, e);
      });
    });
  }

  // The block's share of the energies before step `step`.
  __device__ void record(int64_t step) const {
    for (int i = threadIdx.x; i < a.nodes * kSamples * M; i += kThreads) {
      const int l = i / (kSamples * M), sample = i % (kSamples * M);
      const TileNode& node = a.node[l];
      if (first + sample >= a.batch)
        continue;
      float sum = 0;
      if (node.computes_error)
        for (int own = 0; own < node.tiles * kNeurons; ++own) {
          const int at = own / kNeurons * slice + sample * kNeurons + own % kNeurons;
          if (rank * node.tiles * kNeurons + own < node.n)
            sum += shared[node.deviation + at];
        }
      a.energies[((rank * a.steps + step) * a.nodes + l) * a.batch + first + sample] = sum;
    }
  }

  // What weights learn from, of errors that have been found.
  __device__ void give(int round) const {
    for_errors(round, [&](const TileNode& node) {
      if (!node.gives)
        return;
      if (node.weigh != kAbsent)
        return for_pairs(
            node, [&](const Pair& p) { give_delta(node, p, input_of(node, p), pair(node.e, p)); });
      if (node.own_law != kAbsent)
        return for_pairs(node, [&](const Pair& p) { // it has no moment
          const float2 input = input_of(node, p);
          const Elements x = elements(node, p, activate(node.after, input));
          give_delta(node, p, input, own_errors(node, x, false).push);
        });
      with_formulas(node.law, node.law_parameter, [&](auto law) {
        for_pairs(node, [&](const Pair& p) {
          const float2 input = input_of(node, p);
          const Elements x = elements(node, p, activate(node.after, input));
          if (node.delta)
            give_delta(node, p, input, x.of([&](auto... of) { return law.push(of...); }));
          if (!node.moment)
            return;
          const float normalizer = node.normalizer * weight_of(node, p);
          const float2 moment = x.of([&](auto... of) { return law.moment(of...); });
          store_pair(
              node, p, node.moment,
              make_float2(a.mean * (normalizer + moment.x), a.mean * (normalizer + moment.y)));
        });
      });
    });
  }

  __device__ void give_delta(const TileNode& node, const Pair& p, float2 input, float2 push) const {
    push = make_float2(-a.mean * push.x, -a.mean * push.y);
    store_pair(node, p, node.delta, scale_by_slope(node.after, input, push));
  }

  // ---- descent

  __device__ float moved(float z, float gradient, float& velocity, bool has_velocity,
                         bool starts) const {
    if (has_velocity)
      gradient = accelerate<float>(gradient, velocity, a.momentum, a.undamped, a.nesterov, starts);
    return descend<float>(z, gradient, a.lr);
  }

  __device__ void move_states(int64_t step, int round) const {
    const bool starts = a.starts && step == 0;
    for (int l = 0; l < a.nodes; ++l) {
      const TileNode& node = a.node[l];
      if (!node.free || node.move_round != round)
        continue;
      for_pairs(node, [&](const Pair& p) {
        float2& z = pair(node.z, p);
        float2 g = node.e == kAbsent ? make_float2(0, 0) : pair(node.e, p);
        if (node.back != kAbsent) {
          float2 back = sum_of(a.product[node.back], p);
          if (node.feedback == Feedback::gram) {
            const float2 constant_feedback = pair(node.constant_feedback_at, p);
            back = make_float2(constant_feedback.x - back.x, constant_feedback.y - back.y);
          }
          back = scale_by_slope(node.before, z, back);
          g.x -= back.x;
          g.y -= back.y;
        }
        const bool has_velocity = node.v != kAbsent;
        float2 v = has_velocity ? pair(node.v, p) : make_float2(0, 0);
        z.x = moved(z.x, g.x, v.x, has_velocity, starts);
        z.y = moved(z.y, g.y, v.y, has_velocity, starts);
        if (has_velocity)
          pair(node.v, p) = v;
      });
    }
  }

  // A step, or before the first one a sweep, which sets one prediction after another, or after the
  // last one the errors alone, for weights to learn from.
  //
  // Nobody writes to another block what it does not expect yet: between the products that read a
  // panel and whoever writes there next lies a barrier of the cluster. With several rounds, whose
  // panels lie at the same place, that is the first one; else one of the two others.
  template <Precision precision>
  __device__ void move(int64_t step, int round) const {
    if (a.rounds > 1) {
      cluster.sync();
      clear_margins(round);
    }
    publish_states(round);
    cluster.sync();
#pragma unroll 1 // or the code of the products would be there three times
    for (int phase = 0; phase < 3; ++phase) {
      if (phase == 1 && a.phase[round][1] == a.phase[round][2])
        continue;
      if (phase == 2 && step == a.steps)
        return give(round);
      multiply<precision>(round, phase);
      __syncthreads();
      if (phase == 2)
        return move_states(step, round);
      if (step < 0)
        set_predictions(round);
      else if (phase == 0)
        find_errors(round);
      else
        find_weighed_errors(round);
      cluster.sync();
      if (step < 0)
        return;
    }
  }

  template <Precision precision>
  __device__ void run() {
    load_all();
    for (int64_t step = -a.sweeps; step < a.steps + a.gives; ++step) {
      for (int round = 0; round < a.rounds; ++round)
        move<precision>(step, round);
      if (a.energies && step >= 0 && step < a.steps)
        record(step);
    }
    for (int l = 0; l < a.nodes; ++l) {
      const TileNode& node = a.node[l];
      if (!node.free)
        continue;
      store_slice(node.z, node, node.state);
      if (node.v != kAbsent)
        store_slice(node.v, node, node.velocity);
    }
  }
};

template <int M, Precision precision>
__global__ void __launch_bounds__(kThreads, 1)
    chain_tile_kernel(const __grid_constant__ TileArgs args) {
  PYROMANCY_SHARED_MEMORY(memory);
  Tile<M>(args, reinterpret_cast<float*>(memory)).template run<precision>();
}

__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ PackArgs args) {
  for (int i = 0; i < args.count; ++i) {
    const Packing& p = args.matrix[i];
    const int64_t total = static_cast<int64_t>(p.tiles) * p.blocks * kBlock;
    for (int64_t at = first_thread(); at < total; at += all_threads()) {
      const int64_t block = at / kBlock;
      const int lane = static_cast<int>(at % kBlock) / 4;
      const int64_t row = block / p.blocks * kNeurons + lane / 4;
      const int64_t k = block % p.blocks * kDepth + lane % 4 * 4 + at % 4;
      args.packed[p.to + at] =
          row < p.rows && k < p.depth ? p.from[row * p.row_stride + k * p.depth_stride] : 0;
    }
  }
}

template <int M>
void launch_tiles(const TileArgs& args, Precision precision, void* stream) {
  const int64_t blocks = ceil_div(args.batch, kSamples * M) * args.cluster;
  const auto go = [&](auto kernel) {
    launch_cluster(kernel, blocks, args.cluster, args.shared * sizeof(float), stream, args);
  };
  switch (precision) {
  case Precision::highest:
    return go(chain_tile_kernel<M, Precision::highest>);
  case Precision::high:
    return go(chain_tile_kernel<M, Precision::high>);
  case Precision::medium:
    return go(chain_tile_kernel<M, Precision::medium>);
  }
}

} // namespace

int clusters_at_once(int size, int shared_bytes) {
  const void* const kernel =
      reinterpret_cast<const void*>(chain_tile_kernel<1, Precision::highest>);
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel));
  if (attributes.ptxVersion < 90) // translated from code that was compiled without clusters
    return 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  const ClusterLaunch launch(size, size, static_cast<size_t>(shared_bytes), nullptr);
  int largest = 0, count = 0;
  check(cudaOccupancyMaxPotentialClusterSize(&largest, kernel, &launch.config));
  if (size <= largest)
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config));
  return count;
}

void launch_chain_tile(const TileArgs& args, Precision precision, void* stream) {
  if (args.sample_tiles == 1)
    launch_tiles<1>(args, precision, stream);
  else if (args.sample_tiles == 2)
    launch_tiles<2>(args, precision, stream);
  else
    launch_tiles<4>(args, precision, stream);
}

void launch_pack(const PackArgs& args, void* stream) {
  int64_t most = 0;
  for (int i = 0; i < args.count; ++i)
    most = std::max(most, int64_t{args.matrix[i].tiles} * args.matrix[i].blocks * kBlock);
  launch(pack_kernel, blocks_for(most, kThreads), stream, args);
}

} // namespace pyromancy::cuda
