#pragma once

#include "chain_schedule.h"

namespace pyromancy::cuda {

// Sets the states that start at a prediction, which varies, with the products of the steps to come:
// their errors are zero.
void sweep(const Chain& chain, const Inference& inference, const Schedule& schedule);

// All E-steps, a product of the library or a kernel at a time: chains of any width and dtype.
void run_steps(const Chain& chain, const Inference& inference, const Schedule& schedule);

} // namespace pyromancy::cuda
