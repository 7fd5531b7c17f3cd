#include "entry.h"
#include "wide.h"

namespace pyromancy::PYROMANCY_ISA {

extern const TileKernels wide_double[2] = {tile_kernels<Wide<Exact<double>, 2>>(),
                                           tile_kernels<Wide<Exact<double>, 1>>()};

} // namespace pyromancy::PYROMANCY_ISA
