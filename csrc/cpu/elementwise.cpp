#include <torch/csrc/stable/library.h>

#include <vector>

#include "elementwise_kernel.h"
#include "host.h"

namespace pyromancy {
namespace {

using Tensors = std::vector<Tensor>;

// A piece of work: whole blocks of the kernels.
constexpr int64_t kPiece = 8192;

// How many values an instruction reads.
int arity(int64_t op) {
  if (op >= kOps)
    return (op - kOps) % 2 ? 3 : 2;
  switch (static_cast<Op>(op)) {
  case Op::select:
    return 3;
  case Op::add:
  case Op::sub:
  case Op::mul:
  case Op::div:
  case Op::max:
  case Op::min:
  case Op::greater:
  case Op::at_least:
  case Op::pow:
  case Op::logaddexp:
    return 2;
  default:
    return 1;
  }
}

// A program whose values are in as few places as it needs at a time.
struct Program {
  std::vector<ElementInstruction> code;
  std::vector<int> results;
  int slots = 0;

  Program(const std::vector<int64_t>& instructions, const std::vector<int64_t>& wanted,
          int64_t given) {
    const int64_t count = instructions.size() / 4;
    STD_TORCH_CHECK(instructions.size() % 4 == 0 && count <= kMostElementInstructions,
                    "instructions must be four integers each, and at most ",
                    kMostElementInstructions, " of them, got ", instructions.size(), " integers");
    std::vector<int64_t> last(given + count, -1); // the instruction that reads a value last
    for (int64_t i = 0; i < count; ++i) {
      const int64_t* of = &instructions[4 * i];
      STD_TORCH_CHECK(of[0] >= 0 && of[0] < kElementOps, "instruction ", i, " must be one of ",
                      kElementOps, " operations, got ", of[0]);
      ElementInstruction made{static_cast<int>(of[0]), 0, 0, 0, 0};
      int* const reads[] = {&made.a, &made.b, &made.c};
      for (int k = 0; k < arity(of[0]); ++k) {
        STD_TORCH_CHECK(of[k + 1] >= 0 && of[k + 1] < given + i, "instruction ", i,
                        " must read values before it, got ", of[k + 1]);
        *reads[k] = static_cast<int>(of[k + 1]);
        last[of[k + 1]] = i;
      }
      code.push_back(made);
    }
    for (const int64_t value : wanted) {
      STD_TORCH_CHECK(value >= 0 && value < given + count,
                      "results must be values of the program, got ", value);
      last[value] = count;
      results.push_back(static_cast<int>(value));
    }
    std::vector<int> unused;
    for (int64_t i = 0; i < count; ++i) {
      ElementInstruction& now = code[i];
      // not one that it reads itself: vectors are read and written in turn, of the same place
      if (unused.empty())
        unused.push_back(slots++);
      now.slot = unused.back();
      unused.pop_back();
      int freed[3], n = 0;
      for (int k = 0; k < arity(now.op); ++k) {
        const int value = k == 0 ? now.a : k == 1 ? now.b : now.c;
        bool seen = false;
        for (int j = 0; j < n; ++j)
          seen = seen || freed[j] == value;
        if (!seen && value >= given && last[value] == i) {
          freed[n++] = value;
          unused.push_back(code[value - given].slot);
        }
      }
      if (last[given + i] < 0)
        unused.push_back(now.slot);
    }
  }
};

// The dims of operands of one shape, merged where all of them allow it, as the first one lies.
struct Dims {
  std::vector<int64_t> shape, strides; // [operands][dims]
  int64_t size = 1;

  explicit Dims(const std::vector<const Tensor*>& operands) {
    const Sizes sizes = operands[0]->sizes();
    std::vector<int64_t> order;
    for (size_t d = 0; d < sizes.size(); ++d) {
      size *= sizes[d];
      if (sizes[d] == 1)
        continue;
      size_t at = order.size();
      while (at > 0 && lies_within(order[at - 1], d, operands))
        --at;
      order.insert(order.begin() + at, d);
    }
    std::vector<std::vector<int64_t>> merged(operands.size());
    for (const int64_t d : order) {
      bool merges = !shape.empty();
      for (size_t k = 0; k < operands.size() && merges; ++k)
        merges = merged[k].back() == operands[k]->stride(d) * sizes[d];
      if (!merges)
        shape.push_back(1);
      shape.back() *= sizes[d];
      for (size_t k = 0; k < operands.size(); ++k) {
        if (!merges)
          merged[k].push_back(0);
        merged[k].back() = operands[k]->stride(d);
      }
    }
    if (shape.empty()) {
      shape.push_back(1);
      for (std::vector<int64_t>& m : merged)
        m.push_back(1);
    }
    STD_TORCH_CHECK(shape.size() <= size_t(kMostElementDims), "tensors must have at most ",
                    kMostElementDims, " dimensions, got ", shape.size());
    for (const std::vector<int64_t>& m : merged)
      strides.insert(strides.end(), m.begin(), m.end());
  }

private:
  // Whether dim a must lie inside dim b, judged by the first operand that tells them apart.
  static bool lies_within(int64_t a, int64_t b, const std::vector<const Tensor*>& operands) {
    for (const Tensor* t : operands)
      if (t->stride(a) != 0 && t->stride(b) != 0 && t->stride(a) != t->stride(b))
        return t->stride(a) < t->stride(b);
    return false;
  }
};

void elementwise_(Tensors written, Tensors read, std::vector<int64_t> instructions,
                  std::vector<int64_t> results, std::vector<double> numbers) {
  check_elementwise(written, read, results.size());
  const DType dtype = dtype_of("written[0]", written[0]);
  STD_TORCH_CHECK(written.size() + read.size() + numbers.size() <= size_t(kMostElementOperands),
                  "operands and numbers must be at most ", kMostElementOperands, ", got ",
                  written.size() + read.size() + numbers.size());
  const Program program(instructions, results, read.size() + numbers.size());
  std::vector<const Tensor*> operands;
  std::vector<void*> data;
  for (const Tensors* some : {&written, &read})
    for (const Tensor& t : *some) {
      operands.push_back(&t);
      data.push_back(t.data_ptr());
    }
  const Dims dims(operands);
  const ElementwiseArgs args{static_cast<int>(dims.shape.size()),
                             dims.shape.data(),
                             static_cast<int>(written.size()),
                             static_cast<int>(read.size()),
                             data.data(),
                             dims.strides.data(),
                             static_cast<int>(numbers.size()),
                             numbers.data(),
                             static_cast<int>(program.code.size()),
                             program.slots,
                             program.code.data(),
                             program.results.data()};
  const ElementwiseKernels kernels = PYROMANCY_SELECT_KERNELS(elementwise_kernels, dtype);
  torch::stable::parallel_for(
      0, ceil_div(dims.size, kPiece), kGrain / kPiece, [&](int64_t begin, int64_t end) {
        Scratch memory(kernels.bytes(args));
        kernels.run(args, memory.as<void>(), begin * kPiece, std::min(end * kPiece, dims.size));
      });
}

STABLE_TORCH_LIBRARY_IMPL(pyromancy, CPU, m) {
  m.impl("elementwise_", TORCH_BOX(&elementwise_));
}

} // namespace
} // namespace pyromancy
