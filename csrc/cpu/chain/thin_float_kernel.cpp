#include "entry.h"
#include "thin.h"

namespace pyromancy::PYROMANCY_ISA {

extern const TileKernels thin_float[2] = {tile_kernels<Thin<Float, 4>>(),
                                          tile_kernels<Thin<Float, 1>>()};

} // namespace pyromancy::PYROMANCY_ISA
