#pragma once

#include "../plan.h"

namespace pyromancy::cuda {

// Moves what a target learns, by a gradient in memory of its own. A count of steps is kept where it
// lies, in the host's memory or in the device's.
void apply_rule(const Rule& rule, const Operands& operands, const Target& target,
                const Tensor& gradient);

} // namespace pyromancy::cuda
