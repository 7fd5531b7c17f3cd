#include "layout.h"

#include "check.h"

namespace pyromancy {
namespace {

// Whether dim a must lie inside dim b, judged by the first operand that tells them apart.
bool is_inner(int64_t a, int64_t b, std::initializer_list<const int64_t*> strides) {
  for (const int64_t* s : strides)
    if (s[a] != 0 && s[b] != 0 && s[a] != s[b])
      return s[a] < s[b];
  return false;
}

} // namespace

Layout make_layout(const int64_t* sizes, int64_t dim, bool has_rows,
                   std::initializer_list<const int64_t*> strides) {
  STD_TORCH_CHECK(dim <= kMaxDims, "tensors must have at most ", kMaxDims, " dimensions, got ",
                  dim);
  Layout layout;
  layout.rows = has_rows ? sizes[0] : 1;
  layout.size = 1;

  int64_t order[kMaxDims];
  int count = 0;
  for (int64_t d = has_rows; d < dim; ++d) {
    layout.size *= sizes[d];
    if (sizes[d] == 1)
      continue;
    int at = count++;
    for (; at > 0 && is_inner(order[at - 1], d, strides); --at)
      order[at] = order[at - 1];
    order[at] = d;
  }

  // An outer dim merges into the next one where every operand steps over the latter seamlessly.
  layout.dims = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t d = order[i];
    bool merges = layout.dims > 0;
    int k = 0;
    for (const int64_t* s : strides)
      merges = merges && layout.operand[k++].stride[layout.dims - 1] == s[d] * sizes[d];
    if (!merges)
      layout.shape[layout.dims++] = 1;
    layout.shape[layout.dims - 1] *= sizes[d];
    k = 0;
    for (const int64_t* s : strides)
      layout.operand[k++].stride[layout.dims - 1] = s[d];
  }
  if (layout.dims == 0) {
    layout.dims = 1;
    layout.shape[0] = 1;
    for (Operand& operand : layout.operand)
      operand.stride[0] = 1;
  }

  int k = 0;
  for (const int64_t* s : strides) {
    Operand& operand = layout.operand[k++];
    operand.row = has_rows ? s[0] : 0;
    operand.dense = true;
    int64_t step = 1;
    for (int d = layout.dims - 1; d >= 0; step *= layout.shape[d--])
      operand.dense = operand.dense && operand.stride[d] == step;
  }
  return layout;
}

} // namespace pyromancy
