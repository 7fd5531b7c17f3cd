#pragma once

// Products of 16 x 16 and 16 x 8 blocks on tensor cores, from float to float.
//
// A warp holds of a 16 x 16 block of `a` the elements (g, 4 t .. 4 t + 3) and (g + 8, the same) in
// lane 4 g + t, of an 8 x 16 block of `b` (its columns being summed over) the elements (g, 4 t ..
// 4 t + 3), and of the sums the elements (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
// The instructions number the 16 columns otherwise, but the same way in a and b.

#include "chain_tile_kernel.h"
#include "device.h"

namespace pyromancy::cuda {

struct Sums {
  float c[4];
};

#ifdef __CUDACC__ // the tests have these for the CPU

__device__ inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The TF32 number next to x, NaN and infinity kept.
__device__ inline uint32_t nearest_tf32(float x) {
  uint32_t nearest;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(nearest) : "f"(x));
  return nearest;
}

// low in the lower half
__device__ inline uint32_t two_bfloat16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

#endif

// What the instructions do not read of a number in TF32.
inline constexpr uint32_t kUnread = 0x1fff;

// x as the instructions read it: the nearest TF32 number, and at the highest precision what that
// leaves, both together within 2^-22 of x. There it is rounded by a sum of integers whose last bits
// nobody reads, as sm_90 takes several instructions for the conversion: a NaN may become finite in
// `high`, and stays one in `low`.
struct Split {
  uint32_t high, low;
};
template <Precision precision>
__device__ inline Split split_tf32(float x) {
  if constexpr (precision == Precision::high)
    return {nearest_tf32(x), 0};
  const uint32_t high = __float_as_uint(x) + (kUnread + 1) / 2;
  return {high, __float_as_uint(x - __uint_as_float(high & ~kUnread))};
}

// sums += a b^T, with the blocks laid out as above. `small` takes what the largest terms leave of
// the products at the highest precision.
template <Precision precision>
__device__ inline void multiply_add(Sums& sums, Sums& small, const float (&a)[2][4],
                                    const float (&b)[4]) {
  if constexpr (precision == Precision::medium) {
    const uint32_t a2[4] = {two_bfloat16(a[0][0], a[0][1]), two_bfloat16(a[1][0], a[1][1]),
                            two_bfloat16(a[0][2], a[0][3]), two_bfloat16(a[1][2], a[1][3])};
    const uint32_t b2[2] = {two_bfloat16(b[0], b[1]), two_bfloat16(b[2], b[3])};
    mma_bfloat16(sums.c, a2, b2);
  } else {
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const float own_a[4] = {a[0][k], a[1][k], a[0][k + 1], a[1][k + 1]};
      const float own_b[2] = {b[k], b[k + 1]};
      uint32_t high_a[4], high_b[2], low_a[4], low_b[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Split split = split_tf32<precision>(own_a[i]);
        high_a[i] = split.high;
        low_a[i] = split.low;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Split split = split_tf32<precision>(own_b[i]);
        high_b[i] = split.high;
        low_b[i] = split.low;
      }
      if constexpr (precision == Precision::highest) {
        mma_tf32(small.c, low_a, high_b);
        mma_tf32(small.c, high_a, low_b);
      }
      mma_tf32(sums.c, high_a, high_b);
    }
  }
}

} // namespace pyromancy::cuda
