#include "entry.h"
#include "learning.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

template <class P>
constexpr ChainKernels table(const TileKernels* wide, const TileKernels* thin) {
  using C = typename P::Number;
  return {
      .lanes = kLanes<C>,
      .columns_at_once = P::kColumns,
      .panel_rows = 4 * kRows,
      .tiles = {wide, wide + 1, thin, thin + 1},
      .columns = 2 * kLanes<C>,
      .panel = 2 * kLanes<C> * kDepth,
      .outer = outer<P>,
      .row_norms = row_norms<C>,
      .sum_rows = sum_rows<C>,
      .learn = learn<C>,
  };
}

} // namespace

#if defined(__AVX512BF16__)
extern const ChainKernels bfloat16_chain_kernels = table<Paired>(wide_float, thin_float);
#else
extern const ChainKernels chain_kernels[kDTypes] = {table<Exact<float>>(wide_float, thin_float),
                                                    table<Exact<double>>(wide_double, thin_double)};
#endif

} // namespace pyromancy::PYROMANCY_ISA
