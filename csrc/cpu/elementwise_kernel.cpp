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

// Where the runs of a block begin, in every operand, and how long they are.
struct Runs {
  int64_t *offset, *length; // [kElements][operands], [kElements]
  int count;
};

// Goes through positions in blocks.
class Walk {
public:
  Walk(const ElementwiseArgs& a, int64_t begin, int64_t end, int64_t* memory)
      : a_(a), inner_(a.dims - 1), operands_(a.written + a.read), left_(end - begin), at_(memory),
        runs_{memory + operands_, memory + operands_ * (kElements + 1), 0} {
    for (int k = 0; k < operands_; ++k)
      at_[k] = 0;
    for (int d = inner_; d >= 0; --d) {
      index_[d] = begin % a.shape[d];
      begin /= a.shape[d];
      for (int k = 0; k < operands_; ++k)
        at_[k] += index_[d] * stride(k, d);
    }
  }

  // How many numbers its memory holds.
  static int64_t numbers(int operands) {
    return operands * (kElements + 1) + kElements;
  }

  int64_t stride(int operand, int d) const {
    return a_.strides[operand * a_.dims + d];
  }
  const Runs& runs() const {
    return runs_;
  }
  int64_t offset(int run, int operand) const {
    return runs_.offset[run * operands_ + operand];
  }

  // How many elements the next block has.
  int64_t next() {
    int64_t n = 0;
    for (runs_.count = 0; n < kElements && left_ > 0; ++runs_.count) {
      const int64_t length =
          smaller(a_.shape[inner_] - index_[inner_], smaller(kElements - n, left_));
      __builtin_memcpy(runs_.offset + runs_.count * operands_, at_, sizeof *at_ * operands_);
      runs_.length[runs_.count] = length;
      n += length;
      left_ -= length;
      index_[inner_] += length;
      for (int k = 0; k < operands_; ++k)
        at_[k] += length * stride(k, inner_);
      for (int d = inner_; d > 0 && index_[d] == a_.shape[d]; --d) {
        for (int k = 0; k < operands_; ++k)
          at_[k] += stride(k, d - 1) - a_.shape[d] * stride(k, d);
        index_[d] = 0;
        ++index_[d - 1];
      }
    }
    return n;
  }

private:
  const ElementwiseArgs& a_;
  const int inner_, operands_;
  int64_t left_, index_[kMostElementDims];
  int64_t* at_;
  Runs runs_;
};

int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

template <class T>
int64_t bytes_needed(const ElementwiseArgs& a) {
  return (a.read + a.slots + 1) * kElements * int64_t(sizeof(T)) + a.numbers * kVectorBytes +
         aligned(Walk::numbers(a.written + a.read) * int64_t(sizeof(int64_t)));
}

template <class T>
void run(const ElementwiseArgs& a, void* memory, int64_t begin, int64_t end) {
  constexpr int lanes = kLanes<T>;
  T* const gathered = static_cast<T*>(memory);   // [read][kElements]
  T* const kept = gathered + a.read * kElements; // [slots][kElements]
  T* const filled = kept + a.slots * kElements;  // [kElements]
  T* const numbers = filled + kElements;         // [numbers][lanes]
  Walk walk(a, begin, end, reinterpret_cast<int64_t*>(numbers + a.numbers * lanes));
  Source<T> sources[kMostElementOperands + kMostElementInstructions];
  for (int k = 0; k < a.numbers; ++k) {
    store(numbers + k * lanes, splat(static_cast<T>(a.number[k])));
    sources[a.read + k] = {numbers + k * lanes, 0};
  }
  bool results[kMostElementOperands] = {}; // which would change before they are written elsewhere
  for (int k = 0; k < a.written; ++k)
    if (a.results[k] < a.read)
      results[a.results[k]] = true;
  for (int64_t n; (n = walk.next()) > 0;) {
    const Runs& runs = walk.runs();
    const int vectors = static_cast<int>((n + lanes - 1) / lanes);

    for (int k = 0; k < a.read; ++k) {
      const int operand = a.written + k;
      const T* base = static_cast<const T*>(a.data[operand]);
      const int64_t stride = walk.stride(operand, a.dims - 1);
      T* const copy = gathered + k * kElements;
      if (runs.count == 1 && stride == 1 && n % lanes == 0 && !results[k]) {
        sources[k] = {base + walk.offset(0, operand), lanes};
      } else if (runs.count == 1 && stride == 0) {
        store(copy, splat(base[walk.offset(0, operand)]));
        sources[k] = {copy, 0};
      } else {
        T* to = copy;
        for (int r = 0; r < runs.count; to += runs.length[r++])
          read_run(to, base + walk.offset(r, operand), stride, runs.length[r]);
        for (; to < copy + vectors * lanes; ++to)
          *to = T(0);
        sources[k] = {copy, lanes};
      }
    }
    for (int i = 0; i < a.count; ++i) {
      const ElementInstruction& code = a.code[i];
      T* const out = kept + code.slot * kElements;
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
      T* base = static_cast<T*>(a.data[k]);
      for (int r = 0; r < runs.count; values += runs.length[r++])
        write_run(base + walk.offset(r, k), values, walk.stride(k, a.dims - 1), runs.length[r]);
    }
  }
}

} // namespace

// Half precision is left to PyTorch's own operators.
extern const ElementwiseKernels elementwise_kernels[kDTypes] = {
    {bytes_needed<float>, run<float>}, {bytes_needed<double>, run<double>}, {}, {}};

} // namespace pyromancy::PYROMANCY_ISA
