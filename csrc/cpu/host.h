#pragma once

// What the host functions of the CPU kernels share.

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <new>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "../ceil_div.h"
#include "../check.h"

namespace pyromancy {

// Elements of elementwise work that are worth waking another thread for.
inline constexpr int64_t kGrain = 32768;

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Memory for one call, aligned to a cache line: on the stack where it is small, else from a store
// that every thread keeps, since fresh memory costs a page fault per 4 KiB at every call.
class Scratch {
public:
  explicit Scratch(int64_t bytes)
      : size_(bytes <= kInline ? 0 : bytes), data_(size_ ? borrow(size_) : inline_) {}
  ~Scratch() {
    if (size_)
      give_back(data_, size_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

private:
  // `bytes` becomes what there is
  static void* borrow(int64_t& bytes);
  static void give_back(void* data, int64_t bytes);

  static constexpr int64_t kInline = 4096;
  alignas(64) unsigned char inline_[kInline];
  int64_t size_;
  void* data_;
};

// While it lives, this thread takes numbers below the smallest normal one for zero. Moving averages
// of gradients that have ended decay to such numbers and never leave them again, at a hundred times
// the time of others.
class FlushDenormals {
public:
#if !defined(__SSE__)
  FlushDenormals() {}
#else
  FlushDenormals() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | 0x8040); // results, and operands
  }
  ~FlushDenormals() {
    _mm_setcsr(before_);
  }

private:
  const unsigned before_;
#endif
};

// Tasks [begin, end): its owner takes the first, who helps takes the last.
class alignas(64) Share {
public:
  Share(uint32_t begin, uint32_t end) : left_(uint64_t{end} << 32 | begin) {}

  // -1 where none is left
  int64_t first() {
    return take([](uint64_t left) { return left + 1; }, [](uint64_t left) { return left & kLow; });
  }
  int64_t last() {
    return take([](uint64_t left) { return left - (kLow + 1); },
                [](uint64_t left) { return (left >> 32) - 1; });
  }

private:
  static constexpr uint64_t kLow = 0xffffffff;

  template <class Rest, class Taken>
  int64_t take(Rest rest, Taken taken) {
    uint64_t left = left_.load(std::memory_order_relaxed);
    while ((left & kLow) < left >> 32)
      if (left_.compare_exchange_weak(left, rest(left), std::memory_order_relaxed))
        return static_cast<int64_t>(taken(left));
    return -1;
  }

  std::atomic<uint64_t> left_;
};

// f(scratch, task) for every task, each of which costs cost(task), in elements of elementwise work,
// by as many threads as that is worth. Every thread has a share of its own to begin with, the same
// in every call, so that what a task writes is in that core's cache when it comes again; done with
// that, it helps with the others'. Every thread has `bytes` of scratch memory. The tasks must not
// depend on one another.
template <class F, class Cost>
void share_out(int64_t tasks, int64_t bytes, F f, Cost cost) {
  if (tasks <= 0)
    return;
  double total = 0, reached = 0;
  for (int64_t task = 0; task < tasks; ++task)
    total += cost(task);
  const int64_t most = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  const int64_t threads = total / kGrain < static_cast<double>(most)
                              ? std::max(int64_t(1), static_cast<int64_t>(total / kGrain))
                              : most;
  const Scratch memory(threads * int64_t(sizeof(Share)));
  Share* const shares = memory.as<Share>();
  for (int64_t i = 0, begin = 0, end = 0; i < threads; ++i, begin = end) {
    for (; end < tasks && (i + 1 == threads || reached + cost(end) / 2 < total * (i + 1) / threads);
         ++end)
      reached += cost(end);
    new (shares + i) Share(begin, end);
  }
  const auto work = [&](int64_t own, int64_t) {
    const FlushDenormals flush;
    Scratch scratch(bytes);
    for (int64_t task; (task = shares[own].first()) >= 0;)
      f(scratch.as<void>(), task);
    for (int64_t i = 1; i < threads; ++i)
      for (int64_t task; (task = shares[(own + i) % threads].last()) >= 0;)
        f(scratch.as<void>(), task);
  };
  if (threads > 1)
    torch::stable::parallel_for(0, threads, 1, work);
  else
    work(0, 1);
}
// The same for tasks each of which is worth a thread.
template <class F>
void share_out(int64_t tasks, int64_t bytes, F f) {
  share_out(tasks, bytes, f, [](int64_t) { return static_cast<double>(kGrain); });
}

// f(element) with a zero of the tensors' element type.
template <class F>
void with_element(DType dtype, F f) {
  switch (dtype) {
  case DType::float32:
    return f(float());
  case DType::float64:
    return f(double());
  case DType::bfloat16:
    return f(torch::headeronly::BFloat16());
  case DType::float16:
    return f(torch::headeronly::Half());
  }
}

// f(element) with a zero of the type that elements are computed in.
template <class F>
void with_computed(DType dtype, F f) {
  if (computed_in(dtype) == DType::float64)
    f(double());
  else
    f(float());
}

// torch.empty(sizes), dtype and device as in `like`.
Tensor allocate(Sizes sizes, const Tensor& like);

// torch.empty_like(like), its dense strides kept.
Tensor allocate_like(const Tensor& like);

} // namespace pyromancy
