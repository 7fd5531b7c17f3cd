#include "chain_tile_kernel.h"
#include "current_device.h"
#include "launch.h"

namespace pyromancy::cuda {

void set_device(int device) {
  check(cudaSetDevice(device));
}

DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device));
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  const int shared_bytes = get(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const bool has_clusters = get(cudaDevAttrComputeCapabilityMajor) >= 9;
  return {get(cudaDevAttrMultiProcessorCount), shared_bytes,
          has_clusters ? largest_cluster(shared_bytes) : 1};
}

} // namespace pyromancy::cuda
