#pragma once

// How the kernels are launched; for the sources that nvcc compiles.

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../ceil_div.h"
#include "current_device.h"
#include "device.h"

namespace pyromancy::cuda {

// Enough blocks to fill any device many times over. Grids are cut off here, so that their size
// depends on shapes alone; kernels loop over what is left. The tests set it lower, to see them
// loop.
#ifndef PYROMANCY_MAX_BLOCKS
#define PYROMANCY_MAX_BLOCKS (1 << 16)
#endif
inline constexpr int64_t kMaxBlocks = PYROMANCY_MAX_BLOCKS;

inline int64_t blocks_for(int64_t items, int64_t items_per_block) {
  return std::min(kMaxBlocks, ceil_div(items, items_per_block));
}

inline void check(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

// Nothing is launched for no blocks.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, void* stream,
            std::type_identity_t<Parameters>... arguments) {
  if (blocks == 0)
    return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// The configuration of blocks in clusters; it stays where it is, as it points into itself.
struct ClusterLaunch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};

  ClusterLaunch(int64_t blocks, int cluster, size_t shared, void* stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
  ClusterLaunch& operator=(const ClusterLaunch&) = delete;
};

// Blocks that run together in clusters, with shared memory beyond what a kernel may have unasked.
template <class... Parameters>
void launch_cluster(void (*kernel)(Parameters...), int64_t blocks, int cluster, size_t shared,
                    void* stream, std::type_identity_t<Parameters>... arguments) {
  if (blocks == 0)
    return;
  // The attribute is the kernel's, for all threads and for what a graph has captured: always as
  // much as there is, so that no launch takes from another.
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             device_limits().shared_bytes));
  const ClusterLaunch launch(blocks, cluster, shared, stream);
  check(cudaLaunchKernelEx(&launch.config, kernel, arguments...));
}

// f(element) with a zero of the element type.
template <class F>
void with_dtype(DType dtype, F f) {
  switch (dtype) {
  case DType::float32:
    return f(float());
  case DType::float64:
    return f(double());
  case DType::bfloat16:
    return f(bfloat16());
  case DType::float16:
    return f(float16());
  }
}

// f(pack): how many elements can be moved in one piece, 16 bytes or one.
template <class T, class F>
void with_pack(int64_t multiple, std::initializer_list<const void*> pointers, F f) {
  bool packed = multiple % kPack<T> == 0;
  for (const void* p : pointers)
    packed = packed && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  if (packed)
    f(std::integral_constant<int, kPack<T>>{});
  else
    f(std::integral_constant<int, 1>{});
}

// f(zero) of the two types that chains have
template <class F>
void with_float(DType dtype, F f) {
  if (dtype == DType::float64)
    f(double());
  else
    f(float());
}

} // namespace pyromancy::cuda
