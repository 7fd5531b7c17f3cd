#include "chain_plan.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

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

constexpr int kWarps = 8, kQuarters = 4; // of a block, and of a multiprocessor
constexpr int kThreads = 32 * kWarps;    // as in device.h, which only nvcc reads
constexpr int kRounds[] = {1, 2, 3, 4, 6, 8, 12, 16, 24};
constexpr int kGrains[] = {1, 2, 4}; // finer parts keep the warps evenly busy, and take more memory

// Hands out shared memory, 16 bytes at a time.
class Room {
public:
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
  void onwards() {
    used_ = most_;
  }

private:
  int64_t used_ = 0, most_ = 0;
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

// Deals the edges out to so many rounds, in order. Returns whether there are that many edges.
bool deal_out(TileArgs& a, int rounds) {
  int edges = 0, edge = 0, round = 0;
  for (int l = 0; l < a.nodes; ++l)
    edges += has_edge(a, l);
  if (rounds > std::max(1, edges))
    return false;
  a.rounds = rounds;
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    const int before = round; // of the edge to this node, if there is one
    if (has_edge(a, l))
      round = edge++ * rounds / edges;
    node.move_round = round;
    node.error_round = node.into == kAbsent ? round : before;
  }
  return true;
}

// What stays from step to step.
void place_slices(TileArgs& a, Room& room) {
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    const int64_t slice = slice_size(a, l);
    const auto place = [&](bool wanted, int64_t size) {
      return wanted ? room.take(size) : kAbsent;
    };
    const bool records = a.energies && node.computes_error;
    node.z = place(node.free || node.computes_error, slice);
    node.e = place(node.computes_error && (node.free || records), slice);
    node.r = place(records, slice);
    node.mu = place(node.computes_error && node.into == kAbsent, slice);
    node.v = place(node.free && node.velocity, slice);
    node.drive_at = place(node.feedback == Feedback::gram, slice);
    node.bias_at = place(node.into != kAbsent && node.bias, node.tiles * kNeurons);
    node.precision_at = place(node.computes_error && node.precision, node.tiles * kNeurons);
  }
}

// The panels of a round.
void place_panels(TileArgs& a, int round, Room& room) {
  for (int l = 0; l < a.nodes; ++l) {
    TileNode& node = a.node[l];
    const int64_t panel = int64_t{depth_of(a, l)} * a.sample_tiles * kSamples * kDepth;
    if (node.move_round == round)
      node.h = node.free && has_edge(a, l) ? room.take(panel) : kAbsent;
    if (node.error_round == round) {
      node.d = l > 0 && a.node[l - 1].feedback == Feedback::product ? room.take(panel) : kAbsent;
      node.residual = node.weigh != kAbsent ? room.take(panel) : kAbsent;
    }
  }
}

// The products of a round, phase by phase. Those with a gram come first in theirs.
void list_products(TileArgs& a, int round) {
  int count = round > 0 ? a.phase[round - 1][3] : 0;
  const auto add = [&](int to, int from, int panel) {
    TileProduct& p = a.product[count];
    p = {};
    p.tiles = a.node[to].tiles;
    p.blocks = depth_of(a, from);
    p.groups = static_cast<int>(ceil_div(p.tiles, kGroup));
    p.panel = panel;
    return count++;
  };
  int* const phase = a.phase[round];
  phase[0] = count;
  for (int l = 0; l < a.nodes; ++l)
    if (TileNode& node = a.node[l]; node.move_round == round)
      node.back = node.feedback == Feedback::gram ? add(l, l, node.h) : kAbsent;
  for (int l = 0; l < a.nodes; ++l)
    if (TileNode& node = a.node[l]; node.into != kAbsent && node.error_round == round)
      node.into = add(l, l - 1, a.node[l - 1].h);
  phase[1] = count;
  for (int l = 0; l < a.nodes; ++l)
    if (TileNode& node = a.node[l]; node.weigh != kAbsent && node.error_round == round)
      node.weigh = add(l, l, node.residual);
  phase[2] = count;
  for (int l = 0; l < a.nodes; ++l)
    if (TileNode& node = a.node[l]; node.feedback == Feedback::product && node.move_round == round)
      node.back = add(l, l + 1, a.node[l + 1].d);
  phase[3] = count;
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
void place_results(TileArgs& a, int round, Room& room) {
  const int* const phase = a.phase[round];
  int grams = 0;
  for (int l = 0; l < a.nodes; ++l)
    grams += a.node[l].feedback == Feedback::gram && a.node[l].move_round == round;
  const auto place = [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      TileProduct& p = a.product[i];
      p.out = room.take(int64_t{p.parts} * p.tiles * a.sample_tiles * kSamples * kNeurons);
    }
  };
  place(phase[0], phase[0] + grams);
  const int64_t begin = room.used();
  place(phase[0] + grams, phase[2]);
  room.back_to(begin);
  place(phase[2], phase[3]);
}

// Keeps as many matrices in shared memory as fit, the largest first.
void place_matrices(TileArgs& a, Room& room, int64_t limit) {
  std::vector<int> order(a.phase[a.rounds - 1][3]);
  std::iota(order.begin(), order.end(), 0);
  const auto size = [&](int i) {
    return int64_t{a.product[i].tiles} * a.product[i].blocks * kBlock;
  };
  std::stable_sort(order.begin(), order.end(), [&](int i, int j) { return size(i) > size(j); });
  for (const int i : order)
    a.product[i].resident = room.most() + size(i) <= limit ? room.take(size(i)) : kAbsent;
}

int instructions(Precision precision) { // of a block of a product, per tile of samples
  return precision == Precision::highest ? 6 : precision == Precision::high ? 2 : 1;
}

// Cycles of a phase's products in one block.
double phase_cost(const TileArgs& a, int round, int phase, Precision precision) {
  double warp[kWarps] = {}, shared = 0, l2 = 0;
  for (int i = a.phase[round][phase]; i < a.phase[round][phase + 1]; ++i) {
    const TileProduct& p = a.product[i];
    for (int u = 0; u < p.groups * p.parts; ++u) {
      const int part = u / p.groups;
      const int blocks = p.blocks * (part + 1) / p.parts - p.blocks * part / p.parts;
      warp[(p.units + u) % kWarps] += blocks;
      shared += blocks * a.sample_tiles * kSamples * kDepth * 4.0;
    }
    (p.resident == kAbsent ? l2 : shared) += 4.0 * p.tiles * p.blocks * kBlock;
  }
  const double issue = cost::instruction * instructions(precision) * kGroup * a.sample_tiles;
  double busiest = 0;
  for (int w = 0; w < kWarps; ++w) {
    busiest = std::max(busiest, warp[w] * cost::latency);
    if (w < kQuarters)
      busiest = std::max(busiest, (warp[w] + warp[w + kQuarters]) * issue);
  }
  return std::max({busiest, shared / cost::shared_bytes, l2 / cost::l2_bytes}) + cost::barrier;
}

double tile_estimate(const TileArgs& a, Precision precision, const DeviceLimits& device) {
  double step = 0, pairs = 0;
  for (int round = 0; round < a.rounds; ++round) {
    const int* const products = a.phase[round];
    for (int phase = 0; phase < 3; ++phase)
      if (products[phase] < products[phase + 1])
        step += phase_cost(a, round, phase, precision);
    step += (2 + (products[1] < products[2]) + (a.rounds > 1)) *
            (a.cluster > 1 ? cost::cluster_barrier : cost::barrier);
  }
  for (int l = 0; l < a.nodes; ++l)
    pairs += slice_size(a, l) / 2.0 * (a.node[l].free + a.node[l].computes_error);
  step += pairs / kThreads * (cost::pair + cost::pair_peer * a.cluster);
  const int64_t tiles = ceil_div(a.batch, kSamples * a.sample_tiles);
  const int64_t at_once = std::max(1, device.multiprocessors / a.cluster);
  const double waves = static_cast<double>(ceil_div(tiles, at_once));
  const double load = a.shared * 4.0 / cost::l2_bytes;
  return 2 * cost::launch + waves * (load + a.steps * step) / cost::clock;
}

} // namespace

double plan_chain_tile(TileArgs& args, Precision precision, const DeviceLimits& device) {
  double least = std::numeric_limits<double>::infinity();
  const int64_t limit = device.shared_bytes / 4;
  const TileArgs asked = args;
  for (int l = 0; l < asked.nodes; ++l)
    if (asked.node[l].n == 0)
      return least;
  for (const int rounds : kRounds)
    for (const int cluster : kClusters)
      for (const int sample_tiles : kSampleTiles)
        for (const int grain : kGrains) {
          TileArgs a = asked;
          if (cluster > device.cluster || !deal_out(a, rounds))
            continue;
          a.cluster = cluster;
          a.sample_tiles = sample_tiles;
          for (int l = 0; l < a.nodes; ++l)
            a.node[l].tiles = static_cast<int>(ceil_div(a.node[l].n, kNeurons * cluster));
          Room room;
          place_slices(a, room);
          const int64_t begin = room.used();
          for (int round = 0; round < rounds; ++round) {
            room.back_to(begin);
            place_panels(a, round, room);
            list_products(a, round);
            for (int phase = 0; phase < 3; ++phase)
              cut(a, round, phase, grain);
            place_results(a, round, room);
          }
          room.onwards();
          if (room.most() > limit)
            continue;
          place_matrices(a, room, limit);
          a.shared = static_cast<int>(room.most());
          const double estimate = tile_estimate(a, precision, device);
          if (estimate < least) {
            least = estimate;
            args = a;
          }
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
