#include "launch.h"

namespace pyromancy::cuda {

void set_device(int device) {
  check(cudaSetDevice(device));
}

} // namespace pyromancy::cuda
