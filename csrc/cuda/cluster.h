#pragma once

// Thread blocks that run at the same time and write into each other's shared memory.

#include <cooperative_groups.h>

#include "device.h"

// The block's shared memory, as large as its launch says.
#ifndef PYROMANCY_SHARED_MEMORY // the tests have their own
#define PYROMANCY_SHARED_MEMORY(name) extern __shared__ float4 name[]
#endif

namespace pyromancy::cuda {

// One block by itself is a cluster too, on devices that know no others.
class Cluster {
public:
  __device__ explicit Cluster(int size) : size_(size) {}

  __device__ int size() const {
    return size_;
  }

  __device__ int rank() const {
    return size_ == 1 ? 0 : static_cast<int>(blockIdx.x % size_);
  }

  // All threads of all blocks wait, and see what the others wrote before.
  __device__ void sync() const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (size_ > 1)
      return cooperative_groups::this_cluster().sync();
#endif
    __syncthreads();
  }

  // Where the block with this rank has what is at p in this one.
  template <class T>
  __device__ T* peer(T* p, int rank) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    if (size_ > 1)
      return cooperative_groups::this_cluster().map_shared_rank(p, rank);
#endif
    (void)rank;
    return p;
  }

private:
  int size_;
};

} // namespace pyromancy::cuda
