// What the estimates in csrc/cuda/chain_plan.cpp are made of, measured on a device; prints a JSON
// object. For devices with clusters:
//
//   nvcc -O3 -std=c++20 -arch=native -Icsrc bench/gpu_probe.cu -o probe && ./probe

#include <cooperative_groups.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/mma.h"

namespace {

using pyromancy::cuda::kThreads;
using pyromancy::cuda::kWarp;
using pyromancy::cuda::mma_tf32;

constexpr int kBarriers = 1000, kProducts = 1000, kPasses = 20;
constexpr int kIndependent = 4;       // sums of a warp that do not wait for each other
constexpr int64_t kRegion = 16 << 20; // bytes, which the L2 cache holds

void check(cudaError_t error) {
  if (error == cudaSuccess)
    return;
  std::fprintf(stderr, "gpu_probe: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Of the first block.
__device__ void tell(long long start, long long* cycles) {
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0)
    *cycles = clock64() - start;
}

__global__ void barriers(long long* cycles) {
  const auto cluster = cooperative_groups::this_cluster();
  cluster.sync();
  const long long start = clock64();
  for (int i = 0; i < kBarriers; ++i)
    cluster.sync();
  tell(start, cycles);
}

__global__ void products(long long* cycles, float* out) {
  float c[kIndependent][4] = {};
  const uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {4, threadIdx.x};
  __syncthreads();
  const long long start = clock64();
  for (int i = 0; i < kProducts; ++i)
#pragma unroll
    for (int k = 0; k < kIndependent; ++k)
      mma_tf32(c[k], a, b);
  for (int k = 0; k < kIndependent; ++k)
    out[threadIdx.x] += c[k][0]; // all is computed by then
  tell(start, cycles);
}

__global__ void reads(const float4* from, long long* cycles, float* out) {
  float sum = 0;
  __syncthreads();
  const long long start = clock64();
  for (int pass = 0; pass < kPasses; ++pass)
#pragma unroll 8
    for (int64_t i = threadIdx.x; i < kRegion / 16 / 16; i += kThreads) {
      const int64_t at = (i + (pass + blockIdx.x) * (kRegion / 16 / 16)) % (kRegion / 16);
      const float4 x = __ldcg(from + at);
      sum += x.x + x.y + x.z + x.w;
    }
  out[threadIdx.x] = sum; // all has arrived by then
  tell(start, cycles);
}

} // namespace

int main() {
  int multiprocessors, shared;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  long long* cycles;
  float* out;
  float4* region;
  check(cudaMallocManaged(&cycles, sizeof *cycles));
  check(cudaMalloc(&out, kThreads * sizeof *out));
  check(cudaMalloc(&region, kRegion));
  check(cudaMemset(region, 0, kRegion));
  check(cudaFuncSetAttribute(barriers, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto measured =
      [&](auto launch) { // the second time, when code and data are where they stay
        for (int i = 0; i < 2; ++i) {
          launch();
          check(cudaGetLastError());
          check(cudaDeviceSynchronize());
        }
        return static_cast<double>(*cycles);
      };

  std::printf("{\"multiprocessors\": %d, \"shared_bytes\": %d, \"clusters\": [", multiprocessors,
              shared);
  for (const int size : {2, 4, 8}) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(size);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int at_once = 0;
    check(cudaOccupancyMaxActiveClusters(&at_once, barriers, &config));
    const double alone = measured([&] { check(cudaLaunchKernelEx(&config, barriers, cycles)); });
    config.gridDim = dim3(size * at_once);
    const double full = measured([&] { check(cudaLaunchKernelEx(&config, barriers, cycles)); });
    std::printf("%s{\"blocks\": %d, \"at_once\": %d, \"barrier_cycles\": %.1f, "
                "\"barrier_cycles_when_all_do\": %.1f}",
                size > 2 ? ", " : "", size, at_once, alone / kBarriers, full / kBarriers);
  }
  // a quarter of a multiprocessor issues the products of a quarter of the warps
  const double product = measured([&] { products<<<multiprocessors, kThreads>>>(cycles, out); });
  const double each = product / (double{kProducts} * kIndependent * (kThreads / kWarp / 4));
  const double read = measured([&] { reads<<<multiprocessors, kThreads>>>(region, cycles, out); });
  std::printf("], \"tf32_cycles\": %.2f, \"l2_bytes_per_cycle\": %.1f}\n", each,
              kPasses * (kRegion / 16.0) / read);
}
