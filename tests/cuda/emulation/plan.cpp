// The layout of a chain with clamped ends and unit variances, as text, for the tests to read.

#include <algorithm>
#include <cstdio>
#include <string>

#include "cuda/chain_plan.h"

using namespace pyromancy::cuda;

namespace {

std::string text;

template <class... T>
void add(const char* format, T... x) {
  char line[256];
  std::snprintf(line, sizeof line, format, x...);
  text += line;
}

} // namespace

// options: 1 momentum, 2 recorded energies, 4 a gram, 8 precision matrices, 16 the first node is
// free, 32 weights per sample, 64 weights learn
extern "C" __attribute__((visibility("default"))) const char*
plan(int nodes, const int* widths, int64_t batch, int64_t steps, int precision, int options,
     int multiprocessors, int shared_bytes, const int* at_once, const int* asked) {
  static float something;
  TileArgs a{};
  a.batch = batch;
  a.steps = steps;
  a.nodes = nodes;
  a.energies = options & 2 ? &something : nullptr;
  for (int l = 0; l < nodes; ++l) {
    TileNode& node = a.node[l];
    const bool has_gram = (options & 4) && l + 1 == nodes;
    node.n = widths[l];
    node.free = (l > 0 || options & 16) && l + 1 < nodes;
    const bool live = l > 0 && (l > 1 || options & 16) && !has_gram;
    node.into = live ? 0 : kAbsent;
    node.computes_error = !has_gram && (l > 0 || options & 16);
    node.weigh = node.computes_error && options & 8 ? 0 : kAbsent;
    node.bias = &something;
    node.rate = options & 8 ? nullptr : &something;
    node.sample_weights = options & 32 ? &something : nullptr;
    node.gives = live && options & 64;
    a.gives |= node.gives;
    node.constant = live ? nullptr : &something;
    node.velocity = node.free && options & 1 ? &something : nullptr;
    node.feedback = !node.free                        ? Feedback::none
                    : (options & 4) && l + 2 == nodes ? Feedback::gram
                                                      : Feedback::product;
  }
  DeviceLimits device{multiprocessors, shared_bytes, {}};
  std::copy_n(at_once, std::size(device.at_once), device.at_once);
  const auto kind = static_cast<Precision>(precision);
  const double steps_time = steps_estimate(a, kind, device);
  const double tile_time = plan_chain_tile(a, kind, device, {asked[0], asked[1], asked[2]});
  text.clear();
  add("{'tile': %.9g, 'steps': %.9g, 'cluster': %d, 'sample_tiles': %d, 'shared': %d, ",
      tile_time < 1e300 ? tile_time : -1, steps_time, a.cluster, a.sample_tiles, a.shared);
  text += "'phases': [";
  for (int r = 0; r < a.rounds; ++r)
    add("{'begin': [%d, %d, %d, %d], 'units': [%d, %d, %d]}, ", a.phase[r][0], a.phase[r][1],
        a.phase[r][2], a.phase[r][3], a.units[r][0], a.units[r][1], a.units[r][2]);
  text += "], 'nodes': [";
  for (int l = 0; l < nodes; ++l) {
    const TileNode& n = a.node[l];
    add("{'n': %d, 'tiles': %d, 'z': %d, 'e': %d, 'mu': %d, 'v': %d, 'constant_feedback_at': %d, ",
        n.n, n.tiles, n.z, n.e, n.mu, n.v, n.constant_feedback_at);
    add("'deviation': %d, 'bias_at': %d, 'rate_at': %d, 'samples_at': %d, ", n.deviation, n.bias_at,
        n.rate_at, n.samples_at);
    add("'h': %d, 'd': %d, 'residual': %d, ", n.h, n.d, n.residual);
    add("'into': %d, 'weigh': %d, 'back': %d, 'error_round': %d, 'move_round': %d}, ", n.into,
        n.weigh, n.back, n.error_round, n.move_round);
  }
  text += "], 'products': [";
  for (int i = 0; a.rounds > 0 && i < a.phase[a.rounds - 1][3]; ++i) {
    const TileProduct& p = a.product[i];
    add("{'tiles': %d, 'blocks': %d, 'groups': %d, 'parts': %d, 'units': %d, 'resident': %d, "
        "'panel': %d, 'out': %d}, ",
        p.tiles, p.blocks, p.groups, p.parts, p.units, p.resident, p.panel, p.out);
  }
  text += "]}";
  return text.c_str();
}
