// A child of fork() has one thread, and GNU's OpenMP, of which PyTorch's threads are, would wait in
// it for those of its parent without end. So the thread that forks lets its own go before; parent
// and child start others when there is work for them. Other OpenMP libraries see to it themselves.

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>

namespace {

constexpr int kHard = 2; // omp_pause_hard

int (*pause_threads)(int) = nullptr;

void before_fork() {
  pause_threads(kHard);
}

[[maybe_unused]] const bool registered = [] {
  pause_threads = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
  return pause_threads && pthread_atfork(before_fork, nullptr, nullptr) == 0;
}();

} // namespace
#endif
