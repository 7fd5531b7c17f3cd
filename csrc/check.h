#pragma once

// Argument checks of the host functions. Every message names the argument, what it must be and
// what it was. The success path makes no more calls into the library than it has to.

#include <torch/csrc/stable/tensor.h>

#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "dtype.h"

namespace pyromancy {

using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline std::string to_string(Sizes sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i)
    text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

// An argument's name, or that of an entry of a list.
struct Name {
  const char* name;
  int64_t index;

  Name(const char* name, int64_t index = -1) : name(name), index(index) {}
};

inline std::ostream& operator<<(std::ostream& out, const Name& name) {
  out << name.name;
  return name.index < 0 ? out : out << '[' << name.index << ']';
}

inline int32_t raw_dtype(const Tensor& t) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

inline DType dtype_of(Name name, const Tensor& t) {
  const int32_t dtype = raw_dtype(t);
  if (dtype == aoti_torch_dtype_float32())
    return DType::float32;
  if (dtype == aoti_torch_dtype_float64())
    return DType::float64;
  if (dtype == aoti_torch_dtype_bfloat16())
    return DType::bfloat16;
  STD_TORCH_CHECK(dtype == aoti_torch_dtype_float16(), name,
                  " must be float32, float64, bfloat16 or float16, got ",
                  torch::headeronly::toString(t.scalar_type()));
  return DType::float16;
}

inline int64_t device_key(const Tensor& t) {
  int32_t type, index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
  return (static_cast<int64_t>(type) << 32) | static_cast<uint32_t>(index);
}

// dtype and device
inline void check_like(Name name, const Tensor& t, Name like_name, const Tensor& like) {
  STD_TORCH_CHECK(raw_dtype(t) == raw_dtype(like), name, " must have dtype ",
                  torch::headeronly::toString(like.scalar_type()), " of ", like_name, ", got ",
                  torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(device_key(t) == device_key(like), name, " must be on the device of ", like_name);
}

inline void check_same(Name name, const Tensor& t, Name like_name, const Tensor& like) {
  check_like(name, t, like_name, like);
  const Sizes a = t.sizes(), b = like.sizes();
  STD_TORCH_CHECK(a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin()), name,
                  " must have the shape of ", like_name, " ", to_string(b), ", got ", to_string(a));
}

inline void check_state(const Tensor& value, const Tensor& pred) {
  STD_TORCH_CHECK(value.dim() >= 1, "value must have a batch dimension, got shape ()");
  check_same("pred", pred, "value", value);
}

// [] or broadcastable against the node dimensions of value
inline void check_logvar(const Tensor& logvar, const Tensor& value) {
  check_like("logvar", logvar, "value", value);
  const Sizes shape = logvar.sizes(), sizes = value.sizes();
  if (shape.size() == 0)
    return;
  bool broadcasts = shape.size() + 1 == sizes.size();
  for (size_t i = 0; broadcasts && i < shape.size(); ++i)
    broadcasts = shape[i] == 1 || shape[i] == sizes[i + 1];
  STD_TORCH_CHECK(broadcasts, "logvar must broadcast against the node dimensions ",
                  to_string(sizes.slice(1)), ", got shape ", to_string(shape));
}

// one number for each sample of `like`
inline void check_batch(const char* name, const Tensor& t, const char* like_name,
                        const Tensor& like) {
  check_like(name, t, like_name, like);
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == like.size(0), name, " must have shape (",
                  like.size(0), ",), got ", to_string(t.sizes()));
}

inline void check_contiguous(Name name, const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous, got strides ",
                  to_string(t.strides()));
}

inline void check_square(Name name, const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == n && t.size(1) == n, name, " must have shape (", n,
                  ", ", n, "), got ", to_string(t.sizes()));
}

// states [B, P, n] and their factor [n, n]
inline void check_factor(const char* name, const Tensor& state, const Tensor& factor) {
  STD_TORCH_CHECK(state.dim() == 3, name, " must have shape [B, P, n], got ",
                  to_string(state.sizes()));
  check_like("factor", factor, name, state);
  check_square("factor", factor, state.size(2));
}

// What is written in place must not hold one element under two indices.
inline void check_no_overlap(Name name, const Tensor& t) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  for (size_t i = 0; i < sizes.size(); ++i)
    STD_TORCH_CHECK(strides[i] != 0 || sizes[i] <= 1, name,
                    " is written in place and must not be expanded, got stride 0 in dimension ", i,
                    " of shape ", to_string(sizes));
}

// The bytes from a tensor's first element to past its last.
struct Bytes {
  uintptr_t begin, end;

  explicit Bytes(const Tensor& t) : begin(reinterpret_cast<uintptr_t>(t.data_ptr())), end(begin) {
    const Sizes sizes = t.sizes(), strides = t.strides();
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0)
        return;
      last += (sizes[i] - 1) * strides[i];
    }
    end += (last + 1) * t.element_size();
  }
  bool meets(const Bytes& other) const {
    return begin < other.end && other.begin < end;
  }
};

// Whether all bytes between the first and the last of a tensor are its own.
inline bool has_no_gaps(const Tensor& t) {
  const Sizes sizes = t.sizes(), strides = t.strides();
  std::vector<std::pair<int64_t, int64_t>> dims; // stride, size
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] != 1 && strides[i] != 0)
      dims.emplace_back(strides[i], sizes[i]);
  std::sort(dims.begin(), dims.end());
  int64_t step = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != step)
      return false;
    step *= size;
  }
  return true;
}

inline bool same_elements(const Tensor& a, const Tensor& b) {
  const Sizes sizes = a.sizes(), other = b.sizes(), x = a.strides(), y = b.strides();
  if (a.data_ptr() != b.data_ptr() ||
      !std::equal(sizes.begin(), sizes.end(), other.begin(), other.end()))
    return false;
  for (size_t i = 0; i < sizes.size(); ++i)
    if (sizes[i] > 1 && x[i] != y[i])
      return false;
  return true;
}

// What is written must not be read as another operand's elements too, as far as this can be told
// without a search: not where one of the two has gaps. Written element by element, an operand may
// be the very one that is written.
inline void check_no_partial_overlap(Name name, const Tensor& written, Name other_name,
                                     const Tensor& other, bool may_be_same = true) {
  if (!Bytes(written).meets(Bytes(other)) || (may_be_same && same_elements(written, other)))
    return;
  STD_TORCH_CHECK(!has_no_gaps(written) || !has_no_gaps(other), name,
                  " is written in place and must not overlap ", other_name,
                  " in memory; clone one of them");
}

inline void check_finite(const char* name, double x) {
  STD_TORCH_CHECK(std::isfinite(x), name, " must be finite, got ", x);
}

// ---- the arguments of whole operators, on every device

inline DType check_real(Name name, const Tensor& t) {
  const DType dtype = dtype_of(name, t);
  STD_TORCH_CHECK(dtype == DType::float32 || dtype == DType::float64, name,
                  " must be float32 or float64, got ",
                  torch::headeronly::toString(t.scalar_type()));
  return dtype;
}

inline void check_gaussian(const Tensor& value, const Tensor& pred,
                           const std::optional<Tensor>& logvar) {
  check_state(value, pred);
  dtype_of("value", value);
  if (logvar)
    check_logvar(*logvar, value);
}

inline void check_estep(const Tensor& value, const std::optional<Tensor>& buffer,
                        const Tensor& error, const std::optional<Tensor>& feedback, double lr,
                        double momentum, double dampening) {
  dtype_of("value", value);
  check_same("error", error, "value", value);
  if (feedback)
    check_same("feedback", *feedback, "value", value);
  const auto check_written = [&](const char* name, const Tensor& written) {
    check_no_overlap(name, written);
    check_no_partial_overlap(name, written, "error", error);
    if (feedback)
      check_no_partial_overlap(name, written, "feedback", *feedback);
  };
  check_written("value", value);
  if (buffer) {
    check_same("buffer", *buffer, "value", value);
    check_written("buffer", *buffer);
    check_no_partial_overlap("value", value, "buffer", *buffer, false);
  }
  check_finite("lr", lr);
  check_finite("momentum", momentum);
  check_finite("dampening", dampening);
  STD_TORCH_CHECK(buffer || momentum == 0, "momentum must be 0 without a buffer, got ", momentum);
}

inline void check_elementwise(const std::vector<Tensor>& written, const std::vector<Tensor>& read,
                              size_t results) {
  STD_TORCH_CHECK(!written.empty() && written.size() == results,
                  "written must hold a tensor for each of results, got ", written.size(), " and ",
                  results);
  check_real("written[0]", written[0]);
  const auto count = static_cast<int64_t>(written.size()),
             others = static_cast<int64_t>(read.size());
  for (int64_t i = 0; i < others; ++i)
    check_same({"read", i}, read[i], "written[0]", written[0]);
  for (int64_t i = 0; i < count; ++i) {
    check_same({"written", i}, written[i], "written[0]", written[0]);
    check_no_overlap({"written", i}, written[i]);
    for (int64_t k = 0; k < i; ++k)
      check_no_partial_overlap({"written", i}, written[i], {"written", k}, written[k], false);
    for (int64_t k = 0; k < others; ++k)
      check_no_partial_overlap({"written", i}, written[i], {"read", k}, read[k]);
  }
}

// heads of vectors, [batch, heads, length, width]
inline void check_heads(const char* name, const Tensor& t, const Tensor& query) {
  check_same(name, t, "query", query);
  STD_TORCH_CHECK(t.stride(3) == 1 || t.size(3) <= 1, name,
                  " must have the elements of a vector side by side, got strides ",
                  to_string(t.strides()));
}

inline DType check_attention_inputs(const Tensor& query, const Tensor& key, const Tensor& value,
                                    double scale) {
  const DType dtype = check_real("query", query);
  STD_TORCH_CHECK(query.dim() == 4, "query must have shape [batch, heads, length, width], got ",
                  to_string(query.sizes()));
  check_heads("query", query, query);
  check_heads("key", key, query);
  check_heads("value", value, query);
  check_finite("scale", scale);
  return dtype;
}

inline DType check_attention(const Tensor& out, const Tensor& query, const Tensor& key,
                             const Tensor& value, double scale) {
  const DType dtype = check_attention_inputs(query, key, value, scale);
  check_heads("out", out, query);
  check_no_overlap("out", out);
  check_no_partial_overlap("out", out, "query", query, false);
  check_no_partial_overlap("out", out, "key", key, false);
  check_no_partial_overlap("out", out, "value", value, false);
  return dtype;
}

inline DType check_attention_backward(const Tensor& grads, const Tensor& grad, const Tensor& query,
                                      const Tensor& key, const Tensor& value, double scale) {
  const DType dtype = check_attention_inputs(query, key, value, scale);
  check_heads("grad", grad, query);
  check_like("grads", grads, "query", query);
  const Sizes sizes = grads.sizes(), one = query.sizes();
  STD_TORCH_CHECK(sizes.size() == 5 && sizes[0] == 3 &&
                      std::equal(one.begin(), one.end(), sizes.begin() + 1),
                  "grads must hold three tensors of the shape of query ", to_string(one), ", got ",
                  to_string(sizes));
  STD_TORCH_CHECK(grads.stride(4) == 1 || grads.size(4) <= 1,
                  "grads must have the elements of a vector side by side, got strides ",
                  to_string(grads.strides()));
  check_no_overlap("grads", grads);
  check_no_partial_overlap("grads", grads, "grad", grad, false);
  check_no_partial_overlap("grads", grads, "query", query, false);
  check_no_partial_overlap("grads", grads, "key", key, false);
  check_no_partial_overlap("grads", grads, "value", value, false);
  return dtype;
}

inline void check_per_feature(const char* name, const std::optional<Tensor>& t,
                              const Tensor& input) {
  if (!t)
    return;
  check_like(name, *t, "input", input);
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == input.size(-1), name, " must have shape (",
                  input.size(-1), ",), got ", to_string(t->sizes()));
  check_contiguous(name, *t);
}

inline DType check_layer_norm_inputs(const Tensor& out, const Tensor& input,
                                     const std::optional<Tensor>& weight, double eps) {
  const DType dtype = check_real("input", input);
  STD_TORCH_CHECK(input.dim() >= 1, "input must have a dimension, got shape ()");
  check_contiguous("input", input);
  check_per_feature("weight", weight, input);
  check_same("out", out, "input", input);
  check_contiguous("out", out);
  check_no_partial_overlap("out", out, "input", input, false);
  if (weight)
    check_no_partial_overlap("out", out, "weight", *weight, false);
  check_finite("eps", eps);
  return dtype;
}

inline DType check_layer_norm(const Tensor& out, const Tensor& input,
                              const std::optional<Tensor>& weight,
                              const std::optional<Tensor>& bias, double eps) {
  const DType dtype = check_layer_norm_inputs(out, input, weight, eps);
  check_per_feature("bias", bias, input);
  if (bias)
    check_no_partial_overlap("out", out, "bias", *bias, false);
  return dtype;
}

inline DType check_layer_norm_backward(const Tensor& out, const Tensor& grad, const Tensor& input,
                                       const std::optional<Tensor>& weight, double eps) {
  const DType dtype = check_layer_norm_inputs(out, input, weight, eps);
  check_same("grad", grad, "input", input);
  check_contiguous("grad", grad);
  check_no_partial_overlap("out", out, "grad", grad, false);
  return dtype;
}

inline DType check_secant_products(const Tensor& out, const Tensor& gradient, const Tensor& before,
                                   const Tensor& step) {
  const DType dtype = check_real("gradient", gradient);
  STD_TORCH_CHECK(gradient.dim() >= 1, "gradient must have a batch dimension, got shape ()");
  check_same("before", before, "gradient", gradient);
  check_same("step", step, "gradient", gradient);
  STD_TORCH_CHECK(raw_dtype(out) == aoti_torch_dtype_float64(), "out must be float64, got ",
                  torch::headeronly::toString(out.scalar_type()));
  STD_TORCH_CHECK(device_key(out) == device_key(gradient), "out must be on the device of gradient");
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == 9 && out.size(1) == gradient.size(0),
                  "out must have shape (9, ", gradient.size(0), "), got ", to_string(out.sizes()));
  check_contiguous("out", out);
  check_no_partial_overlap("out", out, "gradient", gradient, false);
  check_no_partial_overlap("out", out, "before", before, false);
  check_no_partial_overlap("out", out, "step", step, false);
  return dtype;
}

inline DType check_cholesky_factor(const Tensor& logdiag, const Tensor& offtril) {
  STD_TORCH_CHECK(logdiag.dim() == 1, "logdiag must have one dimension, got shape ",
                  to_string(logdiag.sizes()));
  const DType dtype = dtype_of("logdiag", logdiag);
  check_like("offtril", offtril, "logdiag", logdiag);
  check_square("offtril", offtril, logdiag.size(0));
  return dtype;
}

inline DType check_cholesky_factor_backward(const Tensor& grad, const Tensor& factor) {
  STD_TORCH_CHECK(factor.dim() == 2, "factor must have shape [n, n], got ",
                  to_string(factor.sizes()));
  const DType dtype = dtype_of("factor", factor);
  check_square("factor", factor, factor.size(0));
  check_same("grad", grad, "factor", factor);
  return dtype;
}

} // namespace pyromancy
