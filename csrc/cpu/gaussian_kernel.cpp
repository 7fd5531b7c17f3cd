#include "gaussian_kernel.h"

#include "../laws/gaussian.h"
#include "blocks.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

template <class T>
double precision(const void* logvar, void* precision, int64_t n) {
  using C = Compute<T>;
  const T* in = static_cast<const T*>(logvar);
  C* out = static_cast<C*>(precision);
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    Vec<C> acc = {};
    for_vectors<C>(smaller(kBlock, n - begin), [&](int64_t i, auto extent) {
      const Vec<C> x = load(in + begin + i, extent);
      acc += x;
      store(out + begin + i, exp<C>(-x), extent);
    });
    total += sum<C>(acc);
  }
  return total;
}

template <class T>
void expand(const Layout& layout, const void* compact, void* expanded) {
  using C = Compute<T>;
  gather(static_cast<C*>(expanded), static_cast<const C*>(compact), layout,
         layout.operand[kPrecision], 0, layout.size);
}

// A scalar precision is left to the caller.
template <class T, Precision kind>
double squares(const T* value, const T* pred, const Compute<T>* precision, int64_t n) {
  using C = Compute<T>;
  constexpr int w = kLanes<C>, kUnroll = 4;
  const auto square = [&](int64_t i, auto extent) {
    const Vec<C> d = gaussian::residual(load(value + i, extent), load(pred + i, extent));
    if constexpr (kind == Precision::vector)
      return gaussian::twice_energy(d, load(precision + i, extent));
    else
      return d * d;
  };
  Vec<C> acc[kUnroll] = {};
  int64_t i = 0;
  for (; i + kUnroll * w <= n; i += kUnroll * w)
    for (int k = 0; k < kUnroll; ++k)
      acc[k] += square(i + k * w, Whole{});
  for (; i + w <= n; i += w)
    acc[0] += square(i, Whole{});
  if (i < n)
    acc[1] += square(i, First{static_cast<int>(n - i)});
  return sum<C>((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

template <class T, Precision kind>
void energy_of(const GaussianArgs& a, double* sums, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Input<T> value(a.value, a.layout, kValue), pred(a.pred, a.layout, kPred);
  Input<C> precision(a.precision, a.layout, kPrecision);
  const double scale = kind == Precision::scalar ? *static_cast<const C*>(a.precision) : 1.0;
  for (int64_t item = begin; item < end; ++item)
    sums[item] = 0;
  for_blocks(a, begin, end, [&](int64_t item, int64_t row, int64_t p, int64_t n) {
    const C* iv = kind == Precision::vector ? precision.block(row, p, n) : nullptr;
    sums[item] += scale * squares<T, kind>(value.block(row, p, n), pred.block(row, p, n), iv, n);
  });
}

template <class T, Precision kind>
void residual_of(const GaussianArgs& a, void* residual, void* negative, int64_t begin,
                 int64_t end) {
  using C = Compute<T>;
  Input<T> value(a.value, a.layout, kValue), pred(a.pred, a.layout, kPred);
  Input<C> precision(a.precision, a.layout, kPrecision);
  Output<T> plus(residual, a.layout, kGradValue), minus(negative, a.layout, kGradPred);
  const T* weight = static_cast<const T*>(a.weight);
  const C scale = kind == Precision::scalar ? *static_cast<const C*>(a.precision) : C(1);
  for_blocks(a, begin, end, [&](int64_t, int64_t row, int64_t p, int64_t n) {
    const T* v = value.block(row, p, n);
    const T* m = pred.block(row, p, n);
    const C* iv = kind == Precision::vector ? precision.block(row, p, n) : nullptr;
    const C w = weight ? scale * load_one(weight + row * a.weight_stride) : scale;
    T* out = plus.block(row, p);
    const auto error = [&](int64_t i, auto extent) {
      const Vec<C> d = w * gaussian::residual(load(v + i, extent), load(m + i, extent));
      if constexpr (kind == Precision::vector)
        return gaussian::pull(d, load(iv + i, extent));
      else
        return d;
    };
    if (negative) {
      T* out_negative = minus.block(row, p);
      for_vectors<C>(n, [&](int64_t i, auto extent) {
        const Vec<C> e = error(i, extent);
        store(out + i, e, extent);
        store(out_negative + i, -e, extent);
      });
      minus.commit(row, p, n);
    } else {
      for_vectors<C>(n, [&](int64_t i, auto extent) { store(out + i, error(i, extent), extent); });
    }
    plus.commit(row, p, n);
  });
}

double sum_of(const double* x, int64_t n) {
  Vec<double> acc[4] = {};
  constexpr int w = kLanes<double>;
  int64_t i = 0;
  for (; i + 4 * w <= n; i += 4 * w)
    for (int k = 0; k < 4; ++k)
      acc[k] += load(x + i + k * w);
  double total = sum<double>((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; i < n; ++i)
    total += x[i];
  return total;
}

template <class T, Precision kind>
void residual_logvar_of(const GaussianArgs& a, void* residual, void* negative, double* sums,
                        int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  using C = Compute<T>;
  Input<T> value(a.value, a.layout, kValue), pred(a.pred, a.layout, kPred);
  Input<C> precision(a.precision, a.layout, kPrecision);
  Output<T> plus(residual, a.layout, kGradValue), minus(negative, a.layout, kGradPred);
  const T* weight = static_cast<const T*>(a.weight);
  const C scale = kind == Precision::scalar ? *static_cast<const C*>(a.precision) : C(1);
  for (int64_t p = begin; p < end; p += kBlock) {
    const int64_t n = smaller(kBlock, end - p);
    // Whole vectors are added, so what lies beyond n is written but never read.
    double acc[kBlock + kLanes<C>];
    for (int64_t i = 0; i < n + kLanes<C>; ++i)
      acc[i] = 0;
    for (int64_t row = row_begin; row < row_end; ++row) {
      const T* v = value.block(row, p, n);
      const T* m = pred.block(row, p, n);
      const C* iv = kind == Precision::vector ? precision.block(row, p, n) : nullptr;
      const C w = load_one(weight + row * a.weight_stride);
      T* out = plus.block(row, p);
      T* out_negative = minus.block(row, p);
      for_vectors<C>(n, [&](int64_t i, auto extent) {
        const Vec<C> d = gaussian::residual(load(v + i, extent), load(m + i, extent));
        Vec<C> e = w * scale * d;
        if constexpr (kind == Precision::vector)
          e = gaussian::pull(e, load(iv + i, extent));
        store(out + i, e, extent);
        store(out_negative + i, -e, extent);
        add_to(acc + i, gaussian::twice_moment(splat(w), d, e));
      });
      plus.commit(row, p, n);
      minus.commit(row, p, n);
    }
    const double* from = acc;
    for_runs(a.layout, a.layout.operand[kLogvar], p, n,
             [&](int64_t offset, int64_t stride, int64_t count) {
               if (stride == 0)
                 sums[offset] += sum_of(from, count);
               else
                 for (int64_t i = 0; i < count; ++i)
                   sums[offset + i * stride] += from[i];
               from += count;
             });
  }
}

template <class T>
void energy(const GaussianArgs& a, double* sums, int64_t begin, int64_t end) {
  switch (a.precision_kind) {
  case Precision::none:
    return energy_of<T, Precision::none>(a, sums, begin, end);
  case Precision::scalar:
    return energy_of<T, Precision::scalar>(a, sums, begin, end);
  case Precision::vector:
    return energy_of<T, Precision::vector>(a, sums, begin, end);
  }
}

template <class T>
void residual(const GaussianArgs& a, void* residual, void* negative, int64_t begin, int64_t end) {
  switch (a.precision_kind) {
  case Precision::none:
    return residual_of<T, Precision::none>(a, residual, negative, begin, end);
  case Precision::scalar:
    return residual_of<T, Precision::scalar>(a, residual, negative, begin, end);
  case Precision::vector:
    return residual_of<T, Precision::vector>(a, residual, negative, begin, end);
  }
}

template <class T>
void residual_logvar(const GaussianArgs& a, void* residual, void* negative, double* sums,
                     int64_t row_begin, int64_t row_end, int64_t begin, int64_t end) {
  if (a.precision_kind == Precision::scalar)
    residual_logvar_of<T, Precision::scalar>(a, residual, negative, sums, row_begin, row_end, begin,
                                             end);
  else
    residual_logvar_of<T, Precision::vector>(a, residual, negative, sums, row_begin, row_end, begin,
                                             end);
}

template <class T>
void convert(const double* from, void* to, int64_t n) {
  using C = Compute<T>;
  T* out = static_cast<T*>(to);
  for_vectors<C>(n, [&](int64_t i, auto extent) {
    Vec<C> v = {};
    for (int k = 0; k < kLanes<C> && i + k < n; ++k)
      v[k] = static_cast<C>(from[i + k]);
    store(out + i, v, extent);
  });
}

template <class T>
constexpr GaussianKernels table() {
  return {precision<T>, expand<T>, energy<T>, residual<T>, residual_logvar<T>, convert<T>};
}

} // namespace

extern const GaussianKernels gaussian_kernels[kDTypes] = {table<float>(), table<double>(),
                                                          table<bfloat16>(), table<float16>()};

} // namespace pyromancy::PYROMANCY_ISA
