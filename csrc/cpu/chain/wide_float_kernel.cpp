#include "entry.h"
#include "wide.h"

namespace pyromancy::PYROMANCY_ISA {

extern const TileKernels wide_float[2] = {tile_kernels<Wide<Float, 2>>(),
                                          tile_kernels<Wide<Float, 1>>()};

} // namespace pyromancy::PYROMANCY_ISA
