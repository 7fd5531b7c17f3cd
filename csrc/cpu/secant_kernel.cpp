#include "secant_kernel.h"

#include "blocks.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

template <class C>
void products(const SecantArgs& a, double* sums, int64_t begin, int64_t end) {
  Input<C> gradient(a.gradient, a.layout, 0), before(a.before, a.layout, 1),
      step(a.step, a.layout, 2);
  for (double* sum = sums + begin * kSecantProducts; sum < sums + end * kSecantProducts; ++sum)
    *sum = 0;
  for_blocks(a, begin, end, [&](int64_t item, int64_t row, int64_t p, int64_t n) {
    const C* const of_g = gradient.block(row, p, n);
    const C* const of_h = before.block(row, p, n);
    const C* const of_s = step.block(row, p, n);
    Vec<C> acc[kSecantProducts] = {};
    for_vectors<C>(n, [&](int64_t i, auto extent) { // behind the last are zeros
      const Vec<C> g = load(of_g + i, extent), h = load(of_h + i, extent),
                   s = load(of_s + i, extent), y = g - h;
      acc[kGG] = fma(g, g, acc[kGG]);
      acc[kGS] = fma(g, s, acc[kGS]);
      acc[kGY] = fma(g, y, acc[kGY]);
      acc[kHH] = fma(h, h, acc[kHH]);
      acc[kHS] = fma(h, s, acc[kHS]);
      acc[kHY] = fma(h, y, acc[kHY]);
      acc[kSS] = fma(s, s, acc[kSS]);
      acc[kSY] = fma(s, y, acc[kSY]);
      acc[kYY] = fma(y, y, acc[kYY]);
    });
    for (int k = 0; k < kSecantProducts; ++k)
      sums[item * kSecantProducts + k] += sum<C>(acc[k]);
  });
}

} // namespace

// Half precision is left to PyTorch's own operators.
extern const SecantKernels secant_kernels[kDTypes] = {
    {products<float>}, {products<double>}, {}, {}};

} // namespace pyromancy::PYROMANCY_ISA
