#pragma once

// What the host functions of the CPU kernels share.

#include <torch/csrc/stable/ops.h>

#include "../check.h"

namespace pyromancy {

// Elements of elementwise work that are worth waking another thread for.
inline constexpr int64_t kGrain = 32768;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

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
  T* as() {
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

// torch.empty(sizes), dtype and device as in `like`.
Tensor allocate(Sizes sizes, const Tensor& like);

// torch.empty_like(like), its dense strides kept.
Tensor allocate_like(const Tensor& like);

} // namespace pyromancy
