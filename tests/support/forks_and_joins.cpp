// Tells the thread sanitizer where OpenMP's threads begin and end their work, which it cannot see in a library that is not
// instrumented: what comes before a parallel region happens before all of it, and that before what comes after. Preloaded, it
// stands before the function of GNU's OpenMP that PyTorch's `parallel_for` calls.

#include <dlfcn.h>

#include <atomic>

namespace {

struct Region {
  void (*function)(void*);
  void* data;
  std::atomic<int> joined;
};

void work(void* of) {
  Region& region = *static_cast<Region*>(of);
  region.joined.load(std::memory_order_acquire);
  region.function(region.data);
  region.joined.fetch_add(1, std::memory_order_acq_rel);
}

} // namespace

extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto original = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{function, data, {}};
  region.joined.store(0, std::memory_order_release);
  original(work, &region, threads, flags);
  region.joined.load(std::memory_order_acquire);
}
