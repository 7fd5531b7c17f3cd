#include "host.h"

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

} // namespace

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
