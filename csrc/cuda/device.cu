#include "chain_plan.h"
#include "launch.h"

namespace pyromancy::cuda {

void set_device(int device) {
  check(cudaSetDevice(device));
}

// Of the current device.
DeviceLimits device_limits() {
  int device = 0;
  check(cudaGetDevice(&device));
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
  };
  const bool clusters = get(cudaDevAttrComputeCapabilityMajor) >= 9;
  return {get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          clusters ? kClusters[std::size(kClusters) - 1] : 1};
}

} // namespace pyromancy::cuda
