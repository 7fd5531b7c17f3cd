#include "chain_plan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "../ceil_div.h"

namespace pyromancy::cuda {
namespace {

// What the estimates are made of, in clock cycles where nothing else is said: figures of the
// architecture's manuals, for an H200. No device has calibrated them yet.
namespace cost {
constexpr double clock = 1700;       // cycles per microsecond
constexpr double instruction = 7;    // of a matrix instruction, one after the other on a quarter
constexpr double latency = 36;       // of a block of a product: its sums follow on one another
constexpr double shared_bytes = 128; // that a multiprocessor reads of its shared memory in a cycle
constexpr double l2_bytes = 28;      // and of the L2 cache, when all do
constexpr double barrier = 60;       // of a block
constexpr double cluster_barrier = 400;
constexpr double pair = 40, pair_peer = 6; // of elementwise work on two neurons; more per block
constexpr double launch = 3;               // microseconds of a kernel in a graph, at least
constexpr double float32 = 128 * 2 * 0.7; // operations of a multiprocessor in a cycle, by a library
constexpr double tf32 = 8 * float32, bfloat16 = 14 * float32;
constexpr double memory_bytes = 20; // of device memory that a multiprocessor moves in a cycle
} // namespace cost

constexpr int kQuarters = 4; // of a multiprocessor
constexpr int kThreads = 32 * kWarps;
constexpr int kRounds[] = {1, 2, 3, 4, 6, 8, 12, 16, 24};
constexpr int kGrains[] = {1, 2, 4}; // finer parts keep the warps evenly busy, and take more memory

// Hands out shared memory, 16 bytes at a time.
class SharedMemory {
public:
  SharedMemory() = default;
  explicit SharedMemory(int64_t used) : used_(used), most_(used) {}

  int take(int64_t floats) {
    const int64_t at = used_;
    used_ += (floats + 3) / 4 * 4;
    most_ = std::max(most_, used_);
    return static_cast<int>(std::min<int64_t>(at, std::numeric_limits<int>::max()));
  }
  int64_t used() const {
    return used_;
  }
  int64_t most() const {
    return most_;
  }
  void back_to(int64_t used) {
    used_ = used;
  }

private:
  int64_t used_ = 0, most_ = 0;
};

// One in the making: `place` and then `finish` overwrite whatever another choice has left in it.
struct Layout {
  TileArgs args;
  int grams[kTileNodes];             // a round's products that are of grams, which come first
  SharedMemory memories[kTileNodes]; // a round's shared memory up to its results
};

int64_t slice_size(const TileArgs& a, int node) {
  return int64_t{a.node[node].tiles} * a.sample_tiles * kSamples * kNeurons;
}

// Blocks of a product that sums over a node's neurons.
int depth_of(const TileArgs& a, int node) {
  return static_cast<int>(ceil_div(int64_t{a.node[node].tiles} * a.cluster * kNeurons, kDepth));
}

bool feeds_product(const TileArgs& a, int node) {
  return node + 1 < a.nodes && a.node[node + 1].into != kAbsent;
}

bool has_edge(const TileArgs& a, int source) {
  return a.node[source].feedback == Feedback::gram || feeds_product(a, source);
}

int edges_of(const TileArgs& a) {
  int edges = 0;
  for (int l = 0; l < a.nodes; ++l)
    edges += has_edge(a, l);
  return edges;
}

// Deals the edges out to so many rounds, in order.
void deal_out(TileArgs& a, int rounds) {
  const int edges = edges_of(a);
  int edge = 0, round = 0;
  a.rounds = rounds;
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    const int before = round; // of the edge to this node, if there is one
    if (has_edge(a, l))
      round = edge++ * rounds / edges;
    node.move_round = round;
    node.error_round = node.into == kAbsent ? round : before;
  }
}

// What stays from step to step.
void place_slices(TileArgs& a, SharedMemory& room) {
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    const int64_t slice = slice_size(a, l);
    const auto place = [&](bool wanted, int64_t size) {
      return wanted ? room.take(size) : kAbsent;
    };
    const bool keeps_error = node.free || (node.gives && node.weigh != kAbsent);
    node.z = place(node.free || node.computes_error, slice);
    node.e = place(node.computes_error && keeps_error, slice);
    node.deviation = place(node.computes_error && a.energies, slice);
    node.mu = place(node.computes_error && node.into == kAbsent, slice);
    node.v = place(node.free && node.velocity, slice);
    node.constant_feedback_at = place(node.feedback == Feedback::gram, slice);
    node.bias_at = place(node.into != kAbsent && node.bias, node.tiles * kNeurons);
    node.rate_at = place(node.computes_error && node.rate, node.tiles * kNeurons);
    node.samples_at = place(node.computes_error && node.sample_weights, a.sample_tiles * kSamples);
  }
}

// Panels are of a round: each begins where the slices end.
void place_panels(Layout& layout) {
  TileArgs& a = layout.args;
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    SharedMemory &moving = layout.memories[node.move_round],
                 &erring = layout.memories[node.error_round];
    const int64_t panel = int64_t{depth_of(a, l)} * a.sample_tiles * kSamples * kDepth;
    node.h = node.free && has_edge(a, l) ? moving.take(panel) : kAbsent;
    node.d = l > 0 && a.node[l - 1].feedback == Feedback::product ? erring.take(panel) : kAbsent;
    node.residual = node.weigh != kAbsent ? erring.take(panel) : kAbsent;
  }
}

// The products, in the order in which they are computed: by round, kind and node.
void list_products(Layout& layout) {
  enum { gram, forward, precision, feedback, kinds };
  TileArgs& a = layout.args;
  int at[kTileNodes][kinds] = {}; // how many there are, and then where the next one goes
  for (int l = 0; l < a.nodes; ++l) {
    const TileNode& node = a.node[l];
    at[node.move_round][gram] += node.feedback == Feedback::gram;
    at[node.error_round][forward] += node.into != kAbsent;
    at[node.error_round][precision] += node.weigh != kAbsent;
    at[node.move_round][feedback] += node.feedback == Feedback::product;
  }
  int count = 0;
  for (int round = 0; round < a.rounds; ++round) {
    layout.grams[round] = at[round][gram];
    a.phase[round][0] = count;
    for (int kind = 0; kind < kinds; ++kind) {
      count += std::exchange(at[round][kind], count);
      a.phase[round][std::max(kind, 1)] = count; // a gram's is in a phase with the forward ones
    }
  }
  const auto add = [&](int round, int kind, int to, int from, int panel) {
    TileProduct& p = a.product[at[round][kind]];
    p = {};
    p.tiles = a.node[to].tiles;
    p.blocks = depth_of(a, from);
    p.groups = static_cast<int>(ceil_div(p.tiles, kGroup));
    p.panel = panel;
    return at[round][kind]++;
  };
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    if (node.into != kAbsent)
      node.into = add(node.error_round, forward, l, l - 1, a.node[l - 1].h);
    if (node.weigh != kAbsent)
      node.weigh = add(node.error_round, precision, l, l, node.residual);
    node.back = node.feedback == Feedback::gram ? add(node.move_round, gram, l, l, node.h)
                : node.feedback == Feedback::product
                    ? add(node.move_round, feedback, l, l + 1, a.node[l + 1].d)
                    : kAbsent;
  }
}

// Cuts a phase's products into units that keep the warps evenly busy.
void cut(TileArgs& a, int round, int phase, int grain) {
  const int begin = a.phase[round][phase], end = a.phase[round][phase + 1];
  int64_t work = 0;
  for (int i = begin; i < end; ++i)
    work += int64_t{a.product[i].groups} * a.product[i].blocks;
  const int64_t target = std::max<int64_t>(1, work / (kWarps * grain));
  int& units = a.units[round][phase];
  units = 0;
  for (int i = begin; i < end; ++i) {
    TileProduct& p = a.product[i];
    p.parts = static_cast<int>(
        std::clamp<int64_t>(ceil_div(p.blocks, target), 1, std::min(p.blocks, kWarps)));
    p.units = units;
    units += p.groups * p.parts;
  }
}

// The results of a round's products. Those of predictions and precisions are no longer needed when
// there is feedback; a gram's is.
void place_results(Layout& layout, int round, SharedMemory& room) {
  TileArgs& a = layout.args;
  const int* const phase = a.phase[round];
  const int grams_end = phase[0] + layout.grams[round];
  const auto place = [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      TileProduct& p = a.product[i];
      p.out = room.take(int64_t{p.parts} * p.tiles * a.sample_tiles * kSamples * kNeurons);
    }
  };
  place(phase[0], grams_end);
  const int64_t begin = room.used();
  place(grams_end, phase[2]);
  room.back_to(begin);
  place(phase[2], phase[3]);
}

// Keeps as many matrices in shared memory as fit, the largest first.
void place_matrices(TileArgs& a, SharedMemory& room, int64_t limit) {
  const int count = a.phase[a.rounds - 1][3];
  int order[kProducts];
  int64_t size[kProducts];
  for (int i = 0; i < count; ++i) {
    order[i] = i;
    size[i] = int64_t{a.product[i].tiles} * a.product[i].blocks * kBlock;
  }
  std::sort(order, order + count,
            [&](int i, int j) { return size[i] != size[j] ? size[i] > size[j] : i < j; });
  for (const int i : std::span(order, count))
    a.product[i].resident = room.used() + size[i] <= limit ? room.take(size[i]) : kAbsent;
}

// Everything but results and matrices. Returns whether it fits.
bool place(Layout& layout, int rounds, int cluster, int sample_tiles, int64_t limit) {
  TileArgs& a = layout.args;
  a.cluster = cluster;
  a.sample_tiles = sample_tiles;
  for (int l = 0; l < a.nodes; ++l)
    a.node[l].tiles = static_cast<int>(ceil_div(a.node[l].n, kNeurons * cluster));
  SharedMemory room;
  place_slices(a, room);
  if (room.used() > limit)
    return false;
  deal_out(a, rounds);
  std::fill_n(layout.memories, rounds, room);
  place_panels(layout);
  const auto fits = [limit](const SharedMemory& of_round) { return of_round.used() <= limit; };
  if (!std::all_of(layout.memories, layout.memories + rounds, fits))
    return false;
  list_products(layout);
  return true;
}

// The rest, for as many units of work as the grain makes. Returns whether it fits.
bool finish(Layout& layout, int grain, int64_t limit) {
  TileArgs& a = layout.args;
  SharedMemory whole;
  for (int round = 0; round < a.rounds; ++round) {
    for (int phase = 0; phase < 3; ++phase)
      cut(a, round, phase, grain);
    SharedMemory room = layout.memories[round];
    place_results(layout, round, room);
    if (room.most() > limit)
      return false;
    if (room.most() > whole.used())
      whole = SharedMemory(room.most());
  }
  place_matrices(a, whole, limit);
  a.shared = static_cast<int>(whole.used());
  return true;
}

// Cycles in which a quarter of a multiprocessor issues a block of a product, for a group of tiles.
double issue_cost(const TileArgs& a, Precision precision) {
  const int instructions = precision == Precision::highest ? 6
                           : precision == Precision::high  ? 2
                                                           : 1;
  return cost::instruction * instructions * kGroup * a.sample_tiles;
}

// Cycles of a phase's products in one block.
double phase_cost(const TileArgs& a, int round, int phase, Precision precision) {
  int64_t warp[kWarps] = {};
  double shared = 0, l2 = 0;
  for (int i = a.phase[round][phase]; i < a.phase[round][phase + 1]; ++i) {
    const TileProduct& p = a.product[i];
    for (int part = 0, unit = p.units, begin = 0; part < p.parts; ++part) {
      const int end = p.blocks * (part + 1) / p.parts;
      for (int group = 0; group < p.groups; ++group)
        warp[unit++ % kWarps] += end - begin;
      begin = end;
    }
    shared += 1.0 * p.groups * p.blocks * a.sample_tiles * kSamples * kDepth * 4;
    (p.resident == kAbsent ? l2 : shared) += 4.0 * p.tiles * p.blocks * kBlock;
  }
  const double issue = issue_cost(a, precision);
  double busiest = 0;
  for (int w = 0; w < kWarps; ++w) {
    busiest = std::max(busiest, static_cast<double>(warp[w]) * cost::latency);
    if (w < kQuarters)
      busiest = std::max(busiest, static_cast<double>(warp[w] + warp[w + kQuarters]) * issue);
  }
  return std::max({busiest, shared / cost::shared_bytes, l2 / cost::l2_bytes}) + cost::barrier;
}

// Cycles of a step's elementwise work and of the barriers between its phases.
double fixed_cost(const TileArgs& a) {
  double pairs = 0, barriers = 0;
  for (int l = 0; l < a.nodes; ++l)
    pairs += slice_size(a, l) / 2.0 * (a.node[l].free + a.node[l].computes_error);
  for (int round = 0; round < a.rounds; ++round)
    barriers += 2 + (a.phase[round][1] < a.phase[round][2]) + (a.rounds > 1);
  return pairs / kThreads * (cost::pair + cost::pair_peer * a.cluster) +
         barriers * (a.cluster > 1 ? cost::cluster_barrier : cost::barrier);
}

int at_once(const DeviceLimits& device, int cluster) {
  const auto* const size = std::find(std::begin(kClusters), std::end(kClusters), cluster);
  return device.at_once[size - std::begin(kClusters)];
}

// Microseconds in which all tiles of samples load what they keep and take their steps.
double time_of(const TileArgs& a, double load, double step, const DeviceLimits& device) {
  const int64_t tiles = ceil_div(a.batch, kSamples * a.sample_tiles);
  const double waves = static_cast<double>(ceil_div(tiles, at_once(device, a.cluster)));
  return 2 * cost::launch + waves * (load + a.steps * step) / cost::clock;
}

// Of a layout that is finished.
double tile_estimate(const TileArgs& a, Precision precision, const DeviceLimits& device) {
  double step = fixed_cost(a);
  for (int round = 0; round < a.rounds; ++round)
    for (int phase = 0; phase < 3; ++phase)
      if (a.phase[round][phase] < a.phase[round][phase + 1])
        step += phase_cost(a, round, phase, precision);
  return time_of(a, a.shared * 4.0 / cost::l2_bytes, step, device);
}

// Of one that is placed: what it takes at least, with every warp busy to the end and nothing to
// wait for.
double tile_bound(const TileArgs& a, Precision precision, const DeviceLimits& device) {
  double blocks = 0;
  for (int i = 0; i < a.phase[a.rounds - 1][3]; ++i)
    blocks += 1.0 * a.product[i].groups * a.product[i].blocks;
  const double busy = std::max(cost::latency / kWarps, issue_cost(a, precision) / kQuarters);
  return time_of(a, 0, fixed_cost(a) + blocks * busy, device);
}

} // namespace

double plan_chain_tile(TileArgs& args, Precision precision, const DeviceLimits& device,
                       const AskedLayout& asked) {
  double least = std::numeric_limits<double>::infinity();
  const int64_t limit = device.shared_bytes / 4;
  for (int l = 0; l < args.nodes; ++l)
    if (args.node[l].n == 0)
      return least;
  const int most_rounds = std::max(1, edges_of(args));
  Layout trial{args, {}, {}};
  struct {
    int rounds, cluster, sample_tiles, grain;
  } best{};
  for (const int rounds : kRounds)
    for (const int cluster : kClusters)
      for (const int sample_tiles : kSampleTiles) {
        if (!asked.allows(rounds, cluster, sample_tiles))
          continue;
        if (rounds > most_rounds || at_once(device, cluster) == 0 ||
            !place(trial, rounds, cluster, sample_tiles, limit))
          break; // nor would more tiles fit
        if (tile_bound(trial.args, precision, device) >= least)
          continue;
        for (const int grain : kGrains) {
          if (!finish(trial, grain, limit))
            continue;
          const double estimate = tile_estimate(trial.args, precision, device);
          if (estimate < least) {
            least = estimate;
            best = {rounds, cluster, sample_tiles, grain};
          }
        }
      }
  if (best.rounds > 0) {
    Layout chosen{args, {}, {}};
    place(chosen, best.rounds, best.cluster, best.sample_tiles, limit);
    finish(chosen, best.grain, limit);
    args = chosen.args;
  }
  return least;
}

double steps_estimate(const TileArgs& a, Precision precision, const DeviceLimits& device) {
  const double rate = (precision == Precision::highest ? cost::float32
                       : precision == Precision::high  ? cost::tf32
                                                       : cost::bfloat16) *
                      device.multiprocessors * cost::clock;
  const double batch = static_cast<double>(a.batch);
  double step = 0;
  const auto product = [&](double rows, double depth) {
    step += std::max(cost::launch, 2 * batch * rows * depth / rate);
  };
  const auto elementwise = [&](double n, int tensors) {
    const double bytes = batch * n * tensors * 4;
    step +=
        std::max(cost::launch, bytes / (cost::memory_bytes * device.multiprocessors * cost::clock));
  };
  for (int l = 0; l < a.nodes; ++l) {
    const TileNode& node = a.node[l];
    if (node.into != kAbsent)
      product(node.n, a.node[l - 1].n);
    if (node.weigh != kAbsent)
      product(node.n, node.n);
    if (node.feedback == Feedback::product)
      product(node.n, a.node[l + 1].n);
    if (node.feedback == Feedback::gram)
      product(node.n, node.n);
    if (node.computes_error)
      elementwise(node.n, 4);
    if (node.free)
      elementwise(node.n, 5);
  }
  return a.steps * step;
}

} // namespace pyromancy::cuda
