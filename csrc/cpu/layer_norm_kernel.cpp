#include "layer_norm_kernel.h"

#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

template <class C>
struct Moments {
  C mean, inverse; // of the standard deviation
};

// In two passes, so that nothing cancels.
template <class C>
Moments<C> moments(const C* row, int64_t n, double eps) {
  Vec<C> total{}, squares{};
  for_vectors<C>(n, [&](int64_t i, auto extent) { total += load(row + i, extent); });
  const C mean = sum<C>(total) / n;
  int64_t i = 0;
  for (; i + kLanes<C> <= n; i += kLanes<C>) {
    const Vec<C> d = load(row + i) - mean;
    squares = fma(d, d, squares);
  }
  C rest = 0;
  for (; i < n; ++i)
    rest += (row[i] - mean) * (row[i] - mean);
  const double variance = (sum<C>(squares) + rest) / n;
  return {mean, static_cast<C>(1 / __builtin_sqrt(variance + eps))};
}

template <class C, class Extent>
Vec<C> weight(const C* of, int64_t i, Extent extent) {
  return of ? load(of + i, extent) : splat(C(1));
}

template <class C>
void normalize(const LayerNormArgs& a, int64_t begin, int64_t end) {
  const C* const weights = static_cast<const C*>(a.weight);
  const C* const bias = static_cast<const C*>(a.bias);
  for (int64_t r = begin; r < end; ++r) {
    const C* const row = static_cast<const C*>(a.input) + r * a.width;
    C* const out = static_cast<C*>(a.out) + r * a.width;
    const Moments<C> m = moments(row, a.width, a.eps);
    for_vectors<C>(a.width, [&](int64_t i, auto extent) {
      const Vec<C> normal = (load(row + i, extent) - m.mean) * m.inverse;
      const Vec<C> offset = bias ? load(bias + i, extent) : Vec<C>{};
      store(out + i, fma(normal, weight(weights, i, extent), offset), extent);
    });
  }
}

// (h - mean of h - x times the mean of h x) / deviation, of h = weight times grad and the normal x.
template <class C>
void normalize_backward(const LayerNormArgs& a, int64_t begin, int64_t end) {
  const C* const weights = static_cast<const C*>(a.weight);
  for (int64_t r = begin; r < end; ++r) {
    const C* const row = static_cast<const C*>(a.input) + r * a.width;
    const C* const grad = static_cast<const C*>(a.grad) + r * a.width;
    C* const out = static_cast<C*>(a.out) + r * a.width;
    const Moments<C> m = moments(row, a.width, a.eps);
    Vec<C> total{}, along{};
    for_vectors<C>(a.width, [&](int64_t i, auto extent) {
      const Vec<C> h = load(grad + i, extent) * weight(weights, i, extent); // zeros behind the last
      total += h;
      along = fma(h, (load(row + i, extent) - m.mean) * m.inverse, along);
    });
    const C mean = sum<C>(total) / a.width, share = sum<C>(along) / a.width;
    for_vectors<C>(a.width, [&](int64_t i, auto extent) {
      const Vec<C> normal = (load(row + i, extent) - m.mean) * m.inverse;
      const Vec<C> h = load(grad + i, extent) * weight(weights, i, extent);
      store(out + i, (h - mean - normal * share) * m.inverse, extent);
    });
  }
}

} // namespace

// Half precision is left to PyTorch's own operators.
extern const LayerNormKernels layer_norm_kernels[kDTypes] = {
    {normalize<float>, normalize_backward<float>},
    {normalize<double>, normalize_backward<double>},
    {},
    {}};

} // namespace pyromancy::PYROMANCY_ISA
