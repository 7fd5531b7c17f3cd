#include "gaussian_kernel.h"

#include "../laws/gaussian.h"
#include "launch.h"

namespace pyromancy::cuda {
namespace {

// logvar at positions [p, p + V), which are V elements or one that they all share; 0 without one.
template <class T, int V>
__device__ inline void load_logvar(Compute<T> (&to)[V], const GaussianArgs& a, int64_t p) {
  const T* logvar = static_cast<const T*>(a.logvar);
  const int64_t offset = logvar ? offset_of<1>(a.extent, a.logvar_at, p) : 0;
  if (V > 1 && logvar && a.logvar_at.stride[a.extent.dims - 1] == 1)
    return load<V>(to, logvar + offset);
  const Compute<T> shared = logvar ? widen(logvar[offset]) : Compute<T>(0);
#pragma unroll
  for (int k = 0; k < V; ++k)
    to[k] = shared;
}

// value - pred at V positions, given the offsets of the first in its row
template <class T, int V>
__device__ inline void load_difference(Compute<T> (&to)[V], const GaussianArgs& a, int64_t row,
                                       int64_t value_offset, int64_t pred_offset) {
  Compute<T> pred[V];
  load<V>(to, static_cast<const T*>(a.value) + row * a.value_at.row + value_offset);
  load<V>(pred, static_cast<const T*>(a.pred) + row * a.pred_at.row + pred_offset);
#pragma unroll
  for (int k = 0; k < V; ++k)
    to[k] = gaussian::residual(to[k], pred[k]);
}

template <class T>
__device__ inline Compute<T> weight_of(const GaussianArgs& a, int64_t row) {
  return a.weight ? widen(static_cast<const T*>(a.weight)[row * a.weight_stride]) : Compute<T>(1);
}

// residual and its negative, at V positions
template <class T, int V>
__device__ inline void store_residual(const GaussianArgs& a, void* residual, void* negative,
                                      int64_t row, int64_t residual_offset, int64_t negative_offset,
                                      Compute<T> (&x)[V]) {
  store<V>(static_cast<T*>(residual) + row * a.residual_at.row + residual_offset, x);
  if (!negative)
    return;
#pragma unroll
  for (int k = 0; k < V; ++k)
    x[k] = -x[k];
  store<V>(static_cast<T*>(negative) + row * a.negative_at.row + negative_offset, x);
}

// Each group of threads sums one chunk of a row after another. Packs need up to 64 registers, which
// 4 blocks have; left to itself the compiler makes room for 5 and spills.
template <class T, int V, int group>
__global__ void __launch_bounds__(kThreads, V == 1 ? 0 : 4)
    energy_kernel(const GaussianArgs a, T* energy, Compute<T>* partial) {
  using C = Compute<T>;
  const int64_t size = a.extent.size;
  const int64_t chunks = size > kChunk ? (size + kChunk - 1) / kChunk : 1;
  const int64_t items = a.extent.rows * chunks;
  const int lane = threadIdx.x % group;
  for (int64_t item = first_thread() / group; item < items; item += all_threads() / group) {
    const int64_t row = quotient(item, chunks), begin = (item - row * chunks) * kChunk;
    const int64_t end = size < begin + kChunk ? size : begin + kChunk;
    C sums[V] = {};
#pragma unroll(V == 1 || V == 8 ? 1 : 2)
    for (int64_t p = begin + lane * V; p < end; p += group * V) {
      C d[V], logvar[V];
      load_difference<T>(d, a, row, offset_of<V>(a.extent, a.value_at, p),
                         offset_of<V>(a.extent, a.pred_at, p));
      load_logvar<T>(logvar, a, p);
#pragma unroll
      for (int k = 0; k < V; ++k)
        sums[k] +=
            a.logvar ? gaussian::twice_energy(d[k], std::exp(-logvar[k])) + logvar[k] : d[k] * d[k];
    }
    C sum = 0;
#pragma unroll
    for (int k = 0; k < V; ++k)
      sum += sums[k];
    sum = sum_over<group>(sum);
    if (lane == 0) {
      if (chunks == 1)
        energy[row] = narrow<T>(C(0.5) * sum);
      else
        partial[item] = sum;
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    residual_kernel(const GaussianArgs a, void* residual, void* negative) {
  using C = Compute<T>;
  const int64_t columns = a.extent.size / V, items = a.extent.rows * columns;
  for (int64_t item = first_thread(); item < items; item += all_threads()) {
    const int64_t row = quotient(item, columns), p = (item - row * columns) * V;
    C x[V], logvar[V];
    load_difference<T>(x, a, row, offset_of<V>(a.extent, a.value_at, p),
                       offset_of<V>(a.extent, a.pred_at, p));
    load_logvar<T>(logvar, a, p);
    const C weight = weight_of<T>(a, row);
#pragma unroll
    for (int k = 0; k < V; ++k)
      x[k] = weight * (a.logvar ? gaussian::pull(x[k], std::exp(-logvar[k])) : x[k]);
    store_residual<T>(a, residual, negative, row, offset_of<V>(a.extent, a.residual_at, p),
                      negative ? offset_of<V>(a.extent, a.negative_at, p) : 0, x);
  }
}

// Each thread goes down V columns, through every ranges-th row, so that neighbouring threads are at
// neighbouring elements however short the rows are.
template <class T, int V>
__global__ void __launch_bounds__(kThreads, 4)
    residual_logvar_kernel(const GaussianArgs a, void* residual, void* negative,
                           Compute<T>* columns_out, int64_t ranges) {
  using C = Compute<T>;
  const int64_t columns = a.extent.size / V, items = ranges * columns;
  for (int64_t item = first_thread(); item < items; item += all_threads()) {
    const int64_t range = quotient(item, columns), p = (item - range * columns) * V;
    const int64_t value_offset = offset_of<V>(a.extent, a.value_at, p);
    const int64_t pred_offset = offset_of<V>(a.extent, a.pred_at, p);
    const int64_t residual_offset = offset_of<V>(a.extent, a.residual_at, p);
    const int64_t negative_offset = offset_of<V>(a.extent, a.negative_at, p);
    C precision[V], sums[V] = {};
    load_logvar<T>(precision, a, p);
#pragma unroll
    for (int k = 0; k < V; ++k)
      precision[k] = std::exp(-precision[k]);
    for (int64_t row = range; row < a.extent.rows; row += ranges) {
      C d[V];
      load_difference<T>(d, a, row, value_offset, pred_offset);
      const C weight = weight_of<T>(a, row);
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const C error = weight * gaussian::pull(d[k], precision[k]);
        sums[k] += gaussian::twice_moment(weight, d[k], error);
        d[k] = error;
      }
      store_residual<T>(a, residual, negative, row, residual_offset, negative_offset, d);
    }
#pragma unroll
    for (int k = 0; k < V; ++k)
      columns_out[range * a.extent.size + p + k] = sums[k];
  }
}

template <class T, int V>
void energy_of(const GaussianArgs& args, void* energy, void* chunks, void* stream) {
  const int64_t rows = args.extent.rows, size = args.extent.size;
  T* out = static_cast<T*>(energy);
  Compute<T>* partial = static_cast<Compute<T>*>(chunks);
  if (size <= 2048)
    launch(energy_kernel<T, V, kWarp>, blocks_for(rows, kThreads / kWarp), stream, args, out,
           partial);
  else
    launch(energy_kernel<T, V, kThreads>, blocks_for(rows * ceil_div(size, kChunk), 1), stream,
           args, out, partial);
}

} // namespace

void launch_energy(const GaussianArgs& args, void* energy, void* chunks, void* stream) {
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.packed)
      energy_of<T, kPack<T>>(args, energy, chunks, stream);
    else
      energy_of<T, 1>(args, energy, chunks, stream);
  });
}

void launch_residual(const GaussianArgs& args, void* residual, void* negative, void* stream) {
  const int64_t count = args.extent.rows * args.extent.size;
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (args.packed)
      launch(residual_kernel<T, kPack<T>>, blocks_for(count / kPack<T>, kThreads), stream, args,
             residual, negative);
    else
      launch(residual_kernel<T, 1>, blocks_for(count, kThreads), stream, args, residual, negative);
  });
}

void launch_residual_logvar(const GaussianArgs& args, void* residual, void* negative, void* columns,
                            int64_t ranges, void* stream) {
  const int64_t count = ranges * args.extent.size;
  with_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    Compute<T>* sums = static_cast<Compute<T>*>(columns);
    if (args.packed)
      launch(residual_logvar_kernel<T, kPack<T>>, blocks_for(count / kPack<T>, kThreads), stream,
             args, residual, negative, sums, ranges);
    else
      launch(residual_logvar_kernel<T, 1>, blocks_for(count, kThreads), stream, args, residual,
             negative, sums, ranges);
  });
}

} // namespace pyromancy::cuda
