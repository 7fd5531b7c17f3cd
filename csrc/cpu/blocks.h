#pragma once

// Access to the operands of a Layout in blocks of consecutive positions: the elements themselves
// where the operand is dense, a packed copy where it is not.

#include "../layout.h"
#include "vec.h"

namespace pyromancy::PYROMANCY_ISA {

inline constexpr int64_t kBlock = 2048;

// f(offset, stride, n) for each run along the innermost dim within [begin, begin + count).
template <class F>
inline void for_runs(const Layout& layout, const Operand& operand, int64_t begin, int64_t count,
                     F f) {
  if (count == 0)
    return;
  const int inner = layout.dims - 1;
  int64_t index[kMaxDims];
  int64_t offset = 0;
  for (int d = inner; d >= 0; --d) {
    index[d] = begin % layout.shape[d];
    begin /= layout.shape[d];
    offset += index[d] * operand.stride[d];
  }
  while (true) {
    const int64_t n = smaller(count, layout.shape[inner] - index[inner]);
    f(offset, operand.stride[inner], n);
    if ((count -= n) == 0)
      return;
    offset -= index[inner] * operand.stride[inner];
    index[inner] = 0;
    for (int d = inner - 1;; --d) {
      offset += operand.stride[d];
      if (++index[d] < layout.shape[d])
        break;
      offset -= index[d] * operand.stride[d];
      index[d] = 0;
    }
  }
}

template <class T>
inline void gather(T* to, const T* from, const Layout& layout, const Operand& operand,
                   int64_t begin, int64_t count) {
  for_runs(layout, operand, begin, count, [&](int64_t offset, int64_t stride, int64_t n) {
    const T* p = from + offset;
    if (stride == 1)
      for (int64_t i = 0; i < n; ++i)
        to[i] = p[i];
    else
      for (int64_t i = 0; i < n; ++i)
        to[i] = p[i * stride];
    to += n;
  });
}

template <class T>
inline void scatter(T* to, const T* from, const Layout& layout, const Operand& operand,
                    int64_t begin, int64_t count) {
  for_runs(layout, operand, begin, count, [&](int64_t offset, int64_t stride, int64_t n) {
    T* p = to + offset;
    for (int64_t i = 0; i < n; ++i)
      p[i * stride] = from[i];
    from += n;
  });
}

template <class T>
class Input {
public:
  Input(const void* data, const Layout& layout, int operand)
      : data_(static_cast<const T*>(data)), layout_(layout), operand_(layout.operand[operand]) {}

  const T* block(int64_t row, int64_t begin, int64_t count) {
    const T* base = data_ + row * operand_.row;
    if (operand_.dense)
      return base + begin;
    gather(packed_, base, layout_, operand_, begin, count);
    return packed_;
  }

private:
  const T* data_;
  const Layout& layout_;
  const Operand& operand_;
  T packed_[kBlock];
};

// block() gives where to write, commit() brings it to where it belongs.
template <class T>
class Output {
public:
  Output(void* data, const Layout& layout, int operand)
      : data_(static_cast<T*>(data)), layout_(layout), operand_(layout.operand[operand]) {}

  T* block(int64_t row, int64_t begin) {
    return operand_.dense ? data_ + row * operand_.row + begin : packed_;
  }

  void commit(int64_t row, int64_t begin, int64_t count) {
    if (!operand_.dense)
      scatter(data_ + row * operand_.row, packed_, layout_, operand_, begin, count);
  }

private:
  T* data_;
  const Layout& layout_;
  const Operand& operand_;
  T packed_[kBlock];
};

// f(item, row, begin, count) for the blocks of items [begin, end): work is cut into items
// [row, chunk] of `chunk` positions each, `chunks` of them to a row.
template <class Args, class F>
inline void for_blocks(const Args& a, int64_t begin, int64_t end, F f) {
  int64_t row = begin / a.chunks, chunk = begin % a.chunks;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t last = smaller(a.layout.size, (chunk + 1) * a.chunk);
    for (int64_t p = chunk * a.chunk; p < last; p += kBlock)
      f(item, row, p, smaller(kBlock, last - p));
    if (++chunk == a.chunks) {
      chunk = 0;
      ++row;
    }
  }
}

} // namespace pyromancy::PYROMANCY_ISA
