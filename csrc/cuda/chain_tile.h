#pragma once

// All E-steps in one kernel, that of chain_tile_kernel.h: the way from tensors to its arguments.

#include "chain_learn.h"
#include "chain_schedule.h"

namespace pyromancy::cuda {

Precision precision_of(const Inference& inference);

// What `plan_chain_tile` (chain_plan.h) starts from.
TileArgs tile_args(const Chain& chain, const Inference& inference, const Schedule& schedule,
                   const std::vector<Lesson>& lessons);

// With arguments that have been planned: packs the matrices and launches, and notes the lessons
// that the kernel gives, which are those of its own products.
void run_tiles(const Chain& chain, const Inference& inference, TileArgs& args,
               std::vector<Lesson>& lessons);

} // namespace pyromancy::cuda
