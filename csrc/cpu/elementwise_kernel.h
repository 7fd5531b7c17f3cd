#pragma once

#include "../activations.h"
#include "../laws/expression.h"
#include "isa.h"

namespace pyromancy {

// An instruction is one of the operations of expressions, or behind these, of an activation in its
// turn: 2 i the value of x with parameter p, 2 i + 1 the slope of x, y = f(x) and p.
inline constexpr int kElementOps = static_cast<int>(kOps + 2 * kActivations);
inline constexpr int kMostElementOperands = 48; // and numbers
inline constexpr int kMostElementInstructions = 96, kMostElementDims = 16;

struct ElementInstruction {
  int op;
  int a, b, c; // values
  int slot;    // where its own value is kept, which one that is needed no more has left
};

// Values are the operands that are read, numbers, and what instructions make, in this order.
struct ElementwiseArgs {
  int dims;               // the innermost last
  const int64_t* shape;   // [dims]
  int written, read;      // operands: those written first
  void* const* data;      // [operands]
  const int64_t* strides; // [operands][dims]
  int numbers;
  const double* number;
  int count, slots; // of instructions; of values that are kept at a time
  const ElementInstruction* code;
  const int* results; // values, one for each operand written
};

struct ElementwiseKernels {
  // How much memory a call of `run` is lent.
  int64_t (*bytes)(const ElementwiseArgs& args);
  // The program for positions [begin, end), counted with the innermost dim going fastest.
  void (*run)(const ElementwiseArgs& args, void* memory, int64_t begin, int64_t end);
};

PYROMANCY_DECLARE_KERNELS(ElementwiseKernels, elementwise_kernels)

} // namespace pyromancy
