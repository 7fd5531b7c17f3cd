#pragma once

#include "chain_schedule.h"

namespace pyromancy::cuda {

// All E-steps, a product of the library or a kernel at a time: chains of any width and dtype.
void run_steps(const Chain& chain, const Inference& inference, const Schedule& schedule);

} // namespace pyromancy::cuda
