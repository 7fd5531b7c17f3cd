#pragma once

// All E-steps in one kernel, that of chain_tile_kernel.h: the way from tensors to its arguments.

#include "chain_schedule.h"

namespace pyromancy::cuda {

Precision precision_of(const Inference& inference);

// What `plan_chain_tile` (chain_plan.h) starts from.
TileArgs tile_args(const Chain& chain, const Inference& inference, const Schedule& schedule);

// With arguments that have been planned: packs the matrices and launches.
void run_tiles(const Chain& chain, const Inference& inference, TileArgs& args);

} // namespace pyromancy::cuda
