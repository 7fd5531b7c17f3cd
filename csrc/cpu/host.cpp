#include "host.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyromancy {
namespace {

// Fresh memory of this size comes page by page from the kernel, which costs more than the
// arithmetic does. Huge pages cut that where the system leaves the choice to the program.
void advise_huge_pages(const Tensor& t, int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kHugePage = 2 << 20;
  if (bytes < 4 * kHugePage)
    return;
  const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t first = (begin + kHugePage - 1) & -kHugePage, last = (begin + bytes) & -kHugePage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Tensor empty_strided(Sizes sizes, const int64_t* strides, const Tensor& like) {
  int32_t type, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const int32_t dtype = raw_dtype(like);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(sizes.size(), sizes.data(), strides, dtype, type, index, &handle));
  Tensor t(handle);
  advise_huge_pages(t, t.numel() * aoti_torch_dtype_element_size(dtype));
  return t;
}

// Memory that a thread has given back and will want again.
class Store {
public:
  ~Store() {
    for (const Block& block : blocks_)
      std::free(block.data);
  }

  void* take(int64_t& bytes) {
    // the smallest that is large enough, but not so large that another call misses it
    auto best = blocks_.end();
    for (auto it = blocks_.begin(); it != blocks_.end(); ++it)
      if (it->bytes >= bytes && it->bytes <= 2 * bytes &&
          (best == blocks_.end() || it->bytes < best->bytes))
        best = it;
    if (best == blocks_.end()) {
      bytes = ceil_div(bytes, 4096) * 4096;
      return std::aligned_alloc(4096, bytes);
    }
    const Block block = *best;
    blocks_.erase(best);
    kept_ -= block.bytes;
    bytes = block.bytes;
    return block.data;
  }

  void keep(void* data, int64_t bytes) {
    blocks_.push_back({data, bytes});
    kept_ += bytes;
    while (kept_ > kMost) { // the oldest goes
      std::free(blocks_.front().data);
      kept_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
  }

private:
  static constexpr int64_t kMost = 32 << 20;
  struct Block {
    void* data;
    int64_t bytes;
  };
  std::vector<Block> blocks_;
  int64_t kept_ = 0;
};

thread_local Store store;

} // namespace

void* Scratch::borrow(int64_t& bytes) {
  void* const data = store.take(bytes);
  if (!data)
    throw std::bad_alloc();
  return data;
}

void Scratch::give_back(void* data, int64_t bytes) {
  store.keep(data, bytes);
}

Tensor allocate(Sizes sizes, const Tensor& like) {
  int64_t strides[64];
  STD_TORCH_CHECK(sizes.size() <= 64, "tensors must have at most 64 dimensions, got ",
                  sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= sizes[d] > 0 ? sizes[d] : 1)
    strides[d] = step;
  return empty_strided(sizes, strides, like);
}

Tensor allocate_like(const Tensor& like) {
  // A contiguous tensor needs no search for its dense strides, which spares a dispatcher call.
  if (like.is_contiguous())
    return empty_strided(like.sizes(), like.strides().data(), like);
  Tensor t = torch::stable::empty_like(like);
  advise_huge_pages(t, t.numel() * t.element_size());
  return t;
}

} // namespace pyromancy
