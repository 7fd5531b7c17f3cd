#include "attention_kernel.h"

#include <torch/csrc/stable/library.h>

#include "host.h"

namespace pyromancy {
namespace {

Heads heads_of(const Tensor& t, int64_t first = 0) {
  const int64_t* const strides = t.strides().data() + first;
  return {t.data_ptr(), {strides[0], strides[1], strides[2]}};
}

AttentionArgs arguments(const Tensor& query, const Tensor& key, const Tensor& value, bool causal,
                        double scale) {
  const Sizes sizes = query.sizes();
  AttentionArgs args{};
  args.heads = sizes[1];
  args.length = sizes[2];
  args.width = sizes[3];
  args.causal = causal;
  args.scale = scale;
  args.query = heads_of(query);
  args.key = heads_of(key);
  args.value = heads_of(value);
  return args;
}

template <class Run>
void for_heads(const AttentionArgs& args, int64_t batch, const AttentionKernels& kernels, Run run) {
  if (args.length == 0 || args.width == 0)
    return;
  const int64_t work = args.length * args.length * args.width;
  torch::stable::parallel_for(0, batch * args.heads, ceil_div(kGrain, work),
                              [&](int64_t begin, int64_t end) {
                                Scratch memory(kernels.bytes(args.length, args.width));
                                run(args, memory.as<void>(), begin, end);
                              });
}

void attention_(Tensor out, const Tensor& query, const Tensor& key, const Tensor& value,
                bool causal, double scale) {
  const DType dtype = check_attention(out, query, key, value, scale);
  AttentionArgs args = arguments(query, key, value, causal, scale);
  args.out = heads_of(out);
  const AttentionKernels& kernels = PYROMANCY_SELECT_KERNELS(attention_kernels, dtype);
  for_heads(args, query.size(0), kernels, kernels.attend);
}

void attention_backward_(Tensor grads, const Tensor& grad, const Tensor& query, const Tensor& key,
                         const Tensor& value, bool causal, double scale) {
  const DType dtype = check_attention_backward(grads, grad, query, key, value, scale);
  AttentionArgs args = arguments(query, key, value, causal, scale);
  args.grad = heads_of(grad);
  Heads* const of[] = {&args.in_query, &args.in_key, &args.in_value};
  const int64_t bytes = dtype == DType::float64 ? 8 : 4;
  for (int k = 0; k < 3; ++k) {
    *of[k] = heads_of(grads, 1);
    of[k]->data = static_cast<char*>(of[k]->data) + k * grads.stride(0) * bytes;
  }
  const AttentionKernels& kernels = PYROMANCY_SELECT_KERNELS(attention_kernels, dtype);
  for_heads(args, query.size(0), kernels, kernels.attend_backward);
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("attention_", TORCH_BOX(&attention_));
  m.impl("attention_backward_", TORCH_BOX(&attention_backward_));
}

} // namespace
} // namespace pyromancy
