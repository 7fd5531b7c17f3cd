#pragma once

// How a chain is laid out for chain_tile_kernel.cu, or whether the library's products serve it
// better. Plain arithmetic, for any compiler.

#include "chain_tile_kernel.h"
#include "current_device.h"

namespace pyromancy::cuda {

// A layout that is asked for; 0 leaves a part of it to the plan.
struct AskedLayout {
  int rounds = 0, cluster = 0, sample_tiles = 0;

  bool any() const {
    return rounds || cluster || sample_tiles;
  }
  bool allows(int other_rounds, int other_cluster, int other_tiles) const {
    return (!rounds || rounds == other_rounds) && (!cluster || cluster == other_cluster) &&
           (!sample_tiles || sample_tiles == other_tiles);
  }
};

// Fills in the layout: cluster, sample tiles, products, and every offset in shared memory. The
// caller has set of every node its width, flags, functions and pointers (null or not is what
// counts), `feedback`, and `into` and `weigh` to anything but kAbsent where it wants these
// products; and batch, steps, nodes and energies. Returns the microseconds that this is expected to
// take, or infinity where the chain does not fit as asked.
double plan_chain_tile(TileArgs& args, Precision precision, const DeviceLimits& device,
                       const AskedLayout& asked = {});

// Microseconds that the library's products and the kernels of chain_step_kernel.h are expected to
// take for the same chain.
double steps_estimate(const TileArgs& args, Precision precision, const DeviceLimits& device);

} // namespace pyromancy::cuda
