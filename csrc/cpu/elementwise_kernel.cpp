#include "elementwise_kernel.h"

#include "../laws/operations.h"

namespace pyromancy::PYROMANCY_ISA {
namespace {

constexpr int kElements = 512; // of a block: its values stay in the first caches

template <class C>
struct Source {
  const C* at;
  int step; // from one vector to the next
};

// Elements of a block that lie `stride` apart.
template <class T>
void read_run(T* to, const T* from, int64_t stride, int64_t n) {
  if (stride == 1)
    for_vectors<T>(n,
                   [&](int64_t i, auto extent) { store(to + i, load(from + i, extent), extent); });
  else
    for (int64_t i = 0; i < n; ++i)
      to[i] = from[i * stride];
}

template <class T>
void write_run(T* to, const T* from, int64_t stride, int64_t n) {
  if (stride == 1)
    for_vectors<T>(n,
                   [&](int64_t i, auto extent) { store(to + i, load(from + i, extent), extent); });
  else
    for (int64_t i = 0; i < n; ++i)
      to[i * stride] = from[i];
}

template <class T>
void execute(const ElementInstruction& i, Source<T> x, Source<T> y, Source<T> t, T* out,
             int vectors) {
#define PYROMANCY_EACH(formula)                                                                    \
  for (int q = 0; q < vectors; ++q) {                                                              \
    [[maybe_unused]] const Vec<T> a = load(x.at + q * x.step), b = load(y.at + q * y.step),        \
                                  c = load(t.at + q * t.step), zero{}, one = splat(T(1));          \
    store(out + q * kLanes<T>, Vec<T>(formula));                                                   \
  }                                                                                                \
  return;
  using C = T;
  switch (i.op) {
#define PYROMANCY_OPERATION(name, value)                                                           \
  case static_cast<int>(Op::name):                                                                 \
    PYROMANCY_EACH(value)
    PYROMANCY_OPERATIONS(PYROMANCY_OPERATION)
#undef PYROMANCY_OPERATION
#define PYROMANCY_ACTIVATION(name, value, slope)                                                   \
  case static_cast<int>(kOps + 2 * static_cast<int>(Activation::name)):                            \
    PYROMANCY_EACH(([](Vec<T> x, Vec<T> p, [[maybe_unused]] Vec<T> zero) PYROMANCY_INLINED {       \
      (void)p;                                                                                     \
      return Vec<T>(value);                                                                        \
    }(a, b, zero)))                                                                                \
  case static_cast<int>(kOps + 2 * static_cast<int>(Activation::name)) + 1:                        \
    PYROMANCY_EACH(([](Vec<T> x, Vec<T> y, Vec<T> p, [[maybe_unused]] Vec<T> zero, Vec<T> one)     \
                        PYROMANCY_INLINED {                                                        \
                          (void)x, (void)y, (void)p, (void)one;                                    \
                          return Vec<T>(slope);                                                    \
                        }(a, b, c, zero, one)))
#define PYROMANCY_INLINED __attribute__((always_inline))
    PYROMANCY_ACTIVATIONS(PYROMANCY_ACTIVATION)
#undef PYROMANCY_ACTIVATION
#undef PYROMANCY_INLINED
  }
#undef PYROMANCY_EACH
}

// The elements of one operand, in the order of positions.
template <class T>
class Elements {
public:
  // From a position on. Its own dims are merged: what is dense is one run, whatever others are.
  Elements(const ElementwiseArgs& a, int operand, int64_t position)
      : at_(static_cast<T*>(a.data[operand])) {
    const int64_t* strides = a.strides + operand * a.dims;
    for (int d = 0; d < a.dims; ++d) {
      if (dims_ > 0 && stride_[dims_ - 1] == strides[d] * a.shape[d]) {
        shape_[dims_ - 1] *= a.shape[d];
        stride_[dims_ - 1] = strides[d];
      } else {
        shape_[dims_] = a.shape[d];
        stride_[dims_++] = strides[d];
      }
    }
    for (int d = dims_ - 1; d >= 0; --d) {
      index_[d] = position % shape_[d];
      position /= shape_[d];
      at_ += index_[d] * stride_[d];
    }
  }

  int64_t stride() const { // within a run
    return stride_[dims_ - 1];
  }
  T* at() const {
    return at_;
  }
  // Whether the next n lie in one run.
  bool in_one_run(int64_t n) const {
    return shape_[dims_ - 1] - index_[dims_ - 1] >= n;
  }

  // f(elements, n) of every run of the next n elements, which are then behind it.
  template <class F>
  void pass(int64_t n, F f) {
    const int inner = dims_ - 1;
    while (n > 0) {
      const int64_t length = smaller(shape_[inner] - index_[inner], n);
      f(at_, length);
      n -= length;
      index_[inner] += length;
      at_ += length * stride_[inner];
      for (int d = inner; d > 0 && index_[d] == shape_[d]; --d) {
        at_ += stride_[d - 1] - shape_[d] * stride_[d];
        index_[d] = 0;
        ++index_[d - 1];
      }
    }
  }
  void pass(int64_t n) {
    pass(n, [](T*, int64_t) {});
  }

private:
  T* at_;
  int dims_ = 0;
  int64_t shape_[kMostElementDims], stride_[kMostElementDims], index_[kMostElementDims];
};

// How many instructions must have run until an operand's values are read no more.
int reads_of(const ElementwiseArgs& a, int operand) {
  int last = 0;
  for (int i = 0; i < a.count; ++i)
    if (a.code[i].a == operand || a.code[i].b == operand || a.code[i].c == operand)
      last = i + 1;
  return last;
}

// Of every instruction the tensor that its values can be written to at once, or -1: no later one
// reads what was there before.
void find_destinations(const ElementwiseArgs& a, int* destination) {
  for (int i = 0; i < a.count; ++i)
    destination[i] = -1;
  for (int k = 0; k < a.written; ++k) {
    const int i = a.results[k] - a.read - a.numbers;
    bool free = i >= 0;
    for (int r = 0; free && r < a.read; ++r)
      free = a.data[a.written + r] != a.data[k] || reads_of(a, r) <= i + 1;
    if (free)
      destination[i] = k;
  }
}

template <class T>
int64_t bytes_needed(const ElementwiseArgs& a) {
  return (a.read + a.slots + 1) * kElements * int64_t(sizeof(T)) + a.numbers * kVectorBytes +
         (a.written + a.read) * int64_t(sizeof(Elements<T>));
}

template <class T>
void run(const ElementwiseArgs& a, void* memory, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>;
  T* const gathered = static_cast<T*>(memory);   // [read][kElements]
  T* const kept = gathered + a.read * kElements; // [slots][kElements]
  T* const filled = kept + a.slots * kElements;  // [kElements]
  T* const numbers = filled + kElements;         // [numbers][lanes]
  auto* const written = reinterpret_cast<Elements<T>*>(numbers + a.numbers * lanes);
  Elements<T>* const read = written + a.written;
  for (int k = 0; k < a.written + a.read; ++k)
    written[k] = Elements<T>(a, k, begin);
  Source<T> sources[kMostElementOperands + kMostElementInstructions];
  for (int k = 0; k < a.numbers; ++k) {
    store(numbers + k * lanes, splat(static_cast<T>(a.number[k])));
    sources[a.read + k] = {numbers + k * lanes, 0};
  }
  bool results[kMostElementOperands] = {}; // which would change before they are written elsewhere
  for (int k = 0; k < a.written; ++k)
    if (a.results[k] < a.read)
      results[a.results[k]] = true;
  int destination[kMostElementInstructions];
  find_destinations(a, destination);
  for (int64_t left = end - begin, n; left > 0; left -= n) {
    n = smaller(left, kElements);
    const int vectors = static_cast<int>((n + lanes - 1) / lanes);

    for (int k = 0; k < a.read; ++k) {
      Elements<T>& from = read[k];
      T* const copy = gathered + k * kElements;
      if (from.in_one_run(n) && from.stride() == 1 && n % lanes == 0 && !results[k]) {
        sources[k] = {from.at(), lanes};
        from.pass(n);
        if (n < left) // what comes next arrives meanwhile, also where there are many operands
          for (int q = 0; q < vectors; ++q)
            __builtin_prefetch(from.at() + q * lanes);
      } else if (from.in_one_run(n) && from.stride() == 0) {
        store(copy, splat(*from.at()));
        sources[k] = {copy, 0};
        from.pass(n);
      } else {
        T* to = copy;
        from.pass(n, [&](const T* run, int64_t length) {
          read_run(to, run, from.stride(), length);
          to += length;
        });
        for (; to < copy + vectors * lanes; ++to)
          *to = T(0);
        sources[k] = {copy, lanes};
      }
    }
    for (int i = 0; i < a.count; ++i) {
      const ElementInstruction& code = a.code[i];
      T* out = kept + code.slot * kElements;
      if (const int k = destination[i];
          k >= 0 && n % lanes == 0 && written[k].stride() == 1 && written[k].in_one_run(n))
        out = written[k].at();
      execute<T>(code, sources[code.a], sources[code.b], sources[code.c], out, vectors);
      sources[a.read + a.numbers + i] = {out, lanes};
    }
    for (int k = 0; k < a.written; ++k) {
      const Source<T> from = sources[a.results[k]];
      const T* values = from.at;
      if (from.step == 0) { // the same for all
        for (int q = 0; q < vectors; ++q)
          store(filled + q * lanes, load(from.at));
        values = filled;
      }
      written[k].pass(n, [&](T* run, int64_t length) {
        if (run != values)
          write_run(run, values, written[k].stride(), length);
        values += length;
      });
    }
  }
}

} // namespace

// Half precision is left to PyTorch's own operators.
extern const ElementwiseKernels elementwise_kernels[kDTypes] = {
    {bytes_needed<float>, run<float>}, {bytes_needed<double>, run<double>}, {}, {}};

} // namespace pyromancy::PYROMANCY_ISA
