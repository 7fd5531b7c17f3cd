#pragma once

// What the kernels share: element types, 16-byte access, index arithmetic, sums over threads.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>

#include "../dtype.h"
#include "operands.h"

namespace pyromancy::cuda {

inline constexpr int kThreads = 256; // of every block
inline constexpr int kWarp = 32;

// Elements of T in 16 bytes.
template <class T>
inline constexpr int kPack = 16 / sizeof(T);

__device__ inline float widen(float x) {
  return x;
}
__device__ inline double widen(double x) {
  return x;
}
__device__ inline float widen(bfloat16 x) {
  return __bfloat162float(__ushort_as_bfloat16(x.bits));
}
__device__ inline float widen(float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

// Rounded to nearest even.
template <class T>
__device__ inline T narrow(Compute<T> x) {
  return x;
}
template <>
__device__ inline bfloat16 narrow<bfloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ inline float16 narrow<float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// V consecutive elements, moved in one piece.
template <class T, int V>
struct alignas(V * sizeof(T)) Pack {
  T element[V];
};

template <int V, class T>
__device__ inline void load(Compute<T> (&to)[V], const T* from) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(from);
#pragma unroll
  for (int k = 0; k < V; ++k)
    to[k] = widen(pack.element[k]);
}

template <int V, class T>
__device__ inline void store(T* to, const Compute<T> (&from)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k)
    pack.element[k] = narrow<T>(from[k]);
  *reinterpret_cast<Pack<T, V>*>(to) = pack;
}

// The first of the elements [0, count) of a loop over all threads of the grid, and its step.
__device__ inline int64_t first_thread() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ inline int64_t all_threads() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

// a / b of numbers that are not negative. A division of 64-bit numbers takes several times as long
// as one of 32-bit numbers.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0)
    return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The offset of index i, counted over `shape` with the last dim the innermost, under `stride`.
__device__ inline int64_t offset_under(int dims, const int64_t* shape, const int64_t* stride,
                                       int64_t i) {
  int64_t offset = 0;
  for (int d = dims - 1; d > 0; --d) {
    const int64_t outer = quotient(i, shape[d]);
    offset += (i - outer * shape[d]) * stride[d];
    i = outer;
  }
  return dims > 0 ? offset + i * stride[0] : 0;
}

// The offset of position p within its row. What is accessed in packs is dense.
template <int V>
__device__ inline int64_t offset_of(const Extent& extent, const Operand& operand, int64_t p) {
  if (V > 1 || operand.dense)
    return p;
  return offset_under(extent.dims, extent.shape, operand.stride, p);
}

// The sum of x over a group of `group` threads, for its first thread: one thread, a warp, or the
// block. It is added as a tree, so that its bits depend on nothing but the terms.
template <int group, class C>
__device__ inline C sum_over(C x) {
  static_assert(group == 1 || group == kWarp || group == kThreads);
  if constexpr (group > 1)
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2)
      x += __shfl_down_sync(0xffffffffu, x, step);
  if constexpr (group == kThreads) {
    constexpr int warps = kThreads / kWarp;
    __shared__ C of_warp[warps];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    __syncthreads(); // the sum before this one has been read
    if (lane == 0)
      of_warp[warp] = x;
    __syncthreads();
    x = lane < warps ? of_warp[lane] : C(0);
#pragma unroll
    for (int step = warps / 2; step > 0; step /= 2)
      x += __shfl_down_sync(0xffffffffu, x, step);
  }
  return x;
}

} // namespace pyromancy::cuda
