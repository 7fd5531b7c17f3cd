#include "entry.h"
#include "thin.h"

namespace pyromancy::PYROMANCY_ISA {

extern const TileKernels thin_double[2] = {tile_kernels<Thin<Exact<double>, 4>>(),
                                           tile_kernels<Thin<Exact<double>, 1>>()};

} // namespace pyromancy::PYROMANCY_ISA
