#include "host.h"

#include "current_device.h"

// libtorch has it where it is built with CUDA. Weak, so that a build with CUDA kernels also loads
// with a torch that has none.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                   void** stream);

namespace pyromancy::cuda {

namespace {

int32_t device_of(const Tensor& t) {
  int32_t index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
  return index;
}

Tensor empty(Sizes sizes, int32_t dtype, const Tensor& like) {
  int64_t strides[kMaxDims];
  STD_TORCH_CHECK(sizes.size() <= kMaxDims, "tensors must have at most ", kMaxDims,
                  " dimensions, got ", sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0; step *= sizes[d] > 0 ? sizes[d] : 1)
    strides[d] = step;
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides, dtype, type,
                                                  device_of(like), &handle));
  return Tensor(handle);
}

} // namespace

Context::Context(const Tensor& t) : stream(nullptr), guard_(device_of(t)) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "this torch is built without CUDA");
  // The CUDA runtime in this library is not torch's, and keeps its own note of the current device.
  set_device(device_of(t));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_of(t), &stream));
}

Tensor allocate(Sizes sizes, const Tensor& like) {
  return empty(sizes, raw_dtype(like), like);
}

Tensor allocate_wide(Sizes sizes, const Tensor& like) {
  const int32_t dtype = raw_dtype(like);
  const int32_t doubles = aoti_torch_dtype_float64();
  return empty(sizes, dtype == doubles ? doubles : aoti_torch_dtype_float32(), like);
}

bool is_on_host(const Tensor& t) {
  int32_t type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type == aoti_torch_device_type_cpu();
}

Extent extent_of(const Layout& layout) {
  STD_TORCH_CHECK(layout.dims <= kDims, "the strides of value must leave at most ", kDims,
                  " node dimensions that cannot be merged, got ", layout.dims);
  Extent extent{layout.rows, layout.size, layout.dims, {}};
  std::copy(layout.shape, layout.shape + layout.dims, extent.shape);
  return extent;
}

Operand operand_of(const Layout& layout, int operand) {
  const pyromancy::Operand& from = layout.operand[operand];
  Operand to{from.dense, from.row, {}};
  std::copy(from.stride, from.stride + layout.dims, to.stride);
  return to;
}

bool is_packed(const Extent& extent, const Operand& operand, const void* data, int64_t element) {
  const int64_t pack = 16 / element;
  return operand.dense && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
         (extent.rows <= 1 || (extent.size % pack == 0 && operand.row % pack == 0));
}

} // namespace pyromancy::cuda
